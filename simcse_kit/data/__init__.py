"""Where text comes from: file readers, NLI triplets, STS sets and the built-in scenes."""
