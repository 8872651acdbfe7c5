"""Dropout whose draws take a CPU a fraction of the time of PyTorch's, which draws value by value."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
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
    if states.device.type != "cpu" or not 0 < round(rate * _STEPS) < _STEPS:
        return nn.functional.dropout(states, rate)
    found: Tensor = _Dropout.apply(states, rate)  # type: ignore[no-untyped-call]
    return found


class Draws(NamedTuple):
    """What dropout does to values, on a CPU.

    Attributes:
        kept: 1 for those kept, 0 for the others, int16, [N].
        scale: What those kept are multiplied by.
    """

    kept: Tensor
    scale: float

    @classmethod
    def of(cls, count: int, rate: float) -> Draws:
        """Draw for so many values; rates as in ``dropout``."""
        dropped = round(rate * _STEPS)
        if dropped in (0, _STEPS):
            return cls(torch.full((count,), int(dropped == 0), dtype=torch.int16, device="cpu"), 1.0)
        # Torch's own generator is the slower one, so it draws no more than the seed.
        generator = np.random.SFC64(int(torch.randint(2**63 - 1, (), device="cpu")))
        draws = torch.from_numpy(generator.random_raw(-(-count // 4)).view(np.int16))
        lowest = dropped - _STEPS // 2  # of those kept
        # By two passes in registers, where a comparison is far slower.
        return cls(draws[:count].clamp_(lowest - 1, lowest).sub_(lowest - 1), _STEPS / (_STEPS - dropped))

    def split(self, counts: list[int]) -> list[Draws]:
        """The same, for parts of the values."""
        return [Draws(part, self.scale) for part in torch.split(self.kept, counts)]

    def applied(self, values: Tensor) -> Tensor:
        """Values, N of any shape, times the scale, and zeros, in one pass."""
        kept = self.kept.view(values.shape).to(values.dtype)
        return torch.addcmul(values.new_zeros(()), values, kept, value=self.scale)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rate: float) -> Tensor:
        draws = Draws.of(states.numel(), rate)
        ctx.save_for_backward(draws.kept)
        ctx.scale = draws.scale
        return draws.applied(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return Draws(kept, ctx.scale).applied(gradient), None
