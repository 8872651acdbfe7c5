"""Training: the recipe, the loop and what it leaves on disk."""
