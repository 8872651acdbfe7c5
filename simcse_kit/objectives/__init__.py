"""What training minimises: objectives on pooled views. They see vectors and never the encoder.

The names below are resolved on first use, so that a recipe is checked against ``settings`` without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simcse_kit.objectives.contrastive import bilinear_info_nce, consistency, info_nce, nt_xent
    from simcse_kit.objectives.ranking import angle, cosent
    from simcse_kit.objectives.registry import OBJECTIVES, build_objective
    from simcse_kit.objectives.siamese import cosine_regression, margin_contrastive, softmax_classification, triplet

__all__ = [
    "OBJECTIVES",
    "angle",
    "bilinear_info_nce",
    "build_objective",
    "consistency",
    "cosent",
    "cosine_regression",
    "info_nce",
    "margin_contrastive",
    "nt_xent",
    "softmax_classification",
    "triplet",
]

_HOMES = {
    "contrastive": ("bilinear_info_nce", "consistency", "info_nce", "nt_xent"),
    "ranking": ("angle", "cosent"),
    "registry": ("OBJECTIVES", "build_objective"),
    "siamese": ("cosine_regression", "margin_contrastive", "softmax_classification", "triplet"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
