"""Linear layers in int8 on a CPU: weights in a quarter of the bytes, multiplied by integer instructions.

Weights get one scale for each output, once, the largest being 127; states a scale and an offset for each token, anew
each time, from 0 for the smallest to 254 for the largest. So a vector never depends on the texts beside it, and no
sample of texts is needed beforehand.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simcse_kit.errors import UserError

NEEDED = "an x86 processor with int8 instructions (VNNI), and PyTorch with oneDNN"
_TINY = torch.finfo(torch.float32).tiny
# Between this number and the next that float32 has lies 1.
_WHOLE = 1.5 * 2**23


class Rounded(NamedTuple):
    """States as ``steps * step + lowest``: steps 0 to 255, uint8 [..., D]; the others [..., 1]. Zero is a step."""

    steps: Tensor
    step: Tensor
    lowest: Tensor

    @classmethod
    def of(cls, states: Tensor, *, spare: bool = False) -> Rounded:
        """Round states, [..., D]; ``spare``: nobody reads them again, and what is on the way takes their place.

        Zero is one of a row's steps, so both of its ends may be rounded outwards: 254 steps become 255 at most, which
        is what a byte holds.
        """
        lowest = states.amin(dim=-1, keepdim=True).clamp_max_(0)
        highest = states.amax(dim=-1, keepdim=True).clamp_min_(0)
        step = (highest - lowest).div_(254).clamp_min_(_TINY)
        per_one = step.reciprocal()
        below = (lowest * per_one).round_()
        scaled = torch.mul(states, per_one, out=states if spare else None)
        # Where numbers are whole, adding rounds, and leaves the steps in the lowest byte.
        steps = scaled.add_(torch.rsub(below, _WHOLE)).view(torch.int32).to(torch.uint8)
        return cls(steps, step, below * step)


class Int8Linear(nn.Module):
    """A linear layer that was trained, for evaluation: [..., width in] -> [..., width out], float32."""

    def __init__(self, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Make a layer whose weight is ``integers * scale``.

        Args:
            integers: int8, [width out, width in].
            scale: Of each output, [width out].
            bias: The same.
        """
        super().__init__()
        self._scale = scale
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(scale), dtype=torch.int64)
        # What a row's lowest value, and 1, are multiplied by: [2, width out].
        self._added = torch.stack([integers.sum(dim=1) * scale, torch.zeros_like(scale) if bias is None else bias])

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Round the weight of a layer."""
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).div_(127).clamp_(min=_TINY)
        integers = (weight / scale.unsqueeze(1)).round_().to(torch.int8)
        return cls(integers, scale, None if linear.bias is None else linear.bias.detach().float())

    @classmethod
    def joined(cls, *layers: Int8Linear) -> Int8Linear:
        """One layer that gives side by side what several give; a copy."""
        integers = torch.cat([layer._packed.to_dense() for layer in layers], dim=1).t().contiguous()
        biases = torch.cat([layer._added[1] for layer in layers])
        return cls(integers, torch.cat([layer._scale for layer in layers]), biases)

    def forward(self, states: Tensor) -> Tensor:
        """Multiply states: [..., width in] -> [..., width out]."""
        return self.multiply(Rounded.of(states))

    def multiply(self, states: Rounded) -> Tensor:
        """Multiply states that are rounded: [..., width in] -> [..., width out]."""
        weight = self._packed, self._scale, self._zeros
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            states.steps, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], "none"
        )
        product.mul_(states.step)
        # As a product of matrices this is quicker than by broadcasting.
        lowest = states.lowest.flatten(0, -2)
        product.view(-1, product.shape[-1]).addmm_(torch.cat([lowest, torch.ones_like(lowest)], dim=1), self._added)
        return product


def is_available() -> bool:
    """Whether this machine's PyTorch has int8 layers, and multiplies the largest values rightly by them.

    Processors without instructions for it add in 16 bits, which large values overflow.
    """
    layer = nn.Linear(64, 16, bias=False)
    nn.init.ones_(layer.weight)
    states = torch.ones(4, 64).index_fill_(1, torch.tensor([0]), 0)
    try:
        return torch.allclose(Int8Linear.of(layer)(states), torch.tensor(63.0))
    except (AttributeError, RuntimeError):
        return False


@torch.inference_mode()
def quantize_layers(backbone: nn.Module, *, keep: Collection[nn.Module | None] = ()) -> None:
    """Replace all linear layers of a backbone, but those to keep, by int8 ones. What they were is lost.

    Raises:
        UserError: If they are not available on this machine.
    """
    if not is_available():
        raise UserError(f"dtype int8 needs {NEEDED}")
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child not in keep:
                setattr(module, name, Int8Linear.of(child))


def has_int8_layers(backbone: nn.Module) -> bool:
    """Whether ``quantize_layers`` has been here."""
    return any(isinstance(module, Int8Linear) for module in backbone.modules())
