"""The types that models compute in: their names, and where they are slow."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch

from simcse_kit.errors import UserError

NO_INSTRUCTIONS = "this processor has no instructions for it"
_SHORT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def parse_dtype(dtype: str | torch.dtype | None, *, int8: bool = False) -> torch.dtype:
    """A floating-point type from its name, or int8 where that is allowed; None is float32.

    Raises:
        UserError: If it is none that models compute in.
    """
    found: Any = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)
    known = [torch.float32, torch.bfloat16, torch.float16, torch.float64, *([torch.int8] if int8 else [])]
    if found not in known:
        names = "float32, bfloat16, float16 or, on a CPU, int8" if int8 else "float32, bfloat16 or float16"
        raise UserError(f"dtype {dtype!r} is unknown; use {names}")
    return cast(torch.dtype, found)


def has_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU has instructions for products in half precision, which take it many times as long without.

    Of other types and devices nothing is known to be slow.
    """
    if device.type != "cpu" or dtype not in _SHORT_NAMES:
        return True
    asked = getattr(torch.ops.mkldnn, f"_is_mkldnn_{_SHORT_NAMES[dtype]}_supported", None)  # private to PyTorch
    return asked is None or bool(asked())


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Say so where a half precision, chosen to be quick, is slow."""
    if not has_instructions(dtype, device):
        name = str(dtype).removeprefix("torch.")
        warnings.warn(f"dtype {name}: float32 is many times as fast here: {NO_INSTRUCTIONS}", stacklevel=3)
