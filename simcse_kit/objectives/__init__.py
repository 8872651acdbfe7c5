"""What training minimises: objectives on pooled views. They see vectors and never the encoder."""

from __future__ import annotations

from simcse_kit.objectives.contrastive import InfoNCE, info_nce

OBJECTIVES = {"info_nce": InfoNCE}

__all__ = ["OBJECTIVES", "InfoNCE", "info_nce"]
