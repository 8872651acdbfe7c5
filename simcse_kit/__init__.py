"""Train, measure and use sentence embeddings: SimCSE, ConSERT and SBERT on Hugging Face encoders.

The names below are resolved on first use, so that importing the package (and ``--help`` of every command) does not
wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simcse_kit.encoder import SentenceEncoder, encode
    from simcse_kit.errors import UserError

__version__ = "0.1.0"
__all__ = ["SentenceEncoder", "UserError", "__version__", "encode"]

_HOMES = {"SentenceEncoder": "encoder", "encode": "encoder", "UserError": "errors"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
