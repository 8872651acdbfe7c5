"""Dropout whose draws take a CPU a fraction of the time of PyTorch's, which draws value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A draw of 64 bits decides about four values: one is dropped where its 16 bits are among the lowest.
_STEPS = 2**16


def dropout(states: Tensor, rate: float) -> Tensor:
    """Set values to zero at random and divide the others by the share that is kept; differentiable.

    Args:
        states: Of any shape.
        rate: Of values to drop, in [0, 1]; on a CPU rounded to a multiple of 1/65,536, and the division with it.

    Returns:
        States of the same shape. The draws are torch's: its seed decides, whatever the number of threads.
    """
    if states.device.type != "cpu" or not drops_some(rate):
        return nn.functional.dropout(states, rate)
    found: Tensor = _Dropout.apply(states, rate)  # type: ignore[no-untyped-call]
    return found


def drops_some(rate: float) -> bool:
    """Whether a rate is neither 0 nor 1 once it is rounded."""
    return 0 < round(rate * _STEPS) < _STEPS


class Kept(NamedTuple):
    """Which values dropout keeps, on a CPU.

    Attributes:
        mask: 1 for those kept and 0 for the others, as int16, [count].
        scale: What those kept are multiplied by.
    """

    mask: Tensor
    scale: float

    @classmethod
    def draw(cls, count: int, rate: float) -> Kept:
        """Draw for so many values, at a rate that ``drops_some``."""
        dropped = round(rate * _STEPS)
        lowest = dropped - _STEPS // 2  # of those kept
        draws = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        # Two passes in registers, where a comparison and its result's conversion are far slower.
        mask = draws.view(torch.int16)[:count].clamp_(lowest - 1, lowest).sub_(lowest - 1)
        return cls(mask, _STEPS / (_STEPS - dropped))

    def split(self, counts: Sequence[int]) -> list[Kept]:
        """In parts of so many values each."""
        return [Kept(part, self.scale) for part in torch.split(self.mask, list(counts))]

    def of(self, values: Tensor) -> Tensor:
        """The values that are kept, times the scale, and zeros; of any shape with so many values."""
        mask = self.mask.view(values.shape).to(values.dtype)
        return torch.addcmul(values.new_zeros(()), values, mask, value=self.scale)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        kept = Kept.draw(states.numel(), rate)
        ctx.save_for_backward(kept.mask)
        ctx.scale = kept.scale
        return kept.of(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return Kept(mask, ctx.scale).of(gradient), None
