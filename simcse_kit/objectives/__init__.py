"""Contrastive objectives on pooled views."""
