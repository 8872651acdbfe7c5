"""Augmentations of the training text: of the text itself, and inside the encoder."""
