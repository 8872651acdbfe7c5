"""The commands: thin, with lazy imports."""
