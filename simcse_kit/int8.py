"""Linear layers in int8 on a CPU: weights in a quarter of the bytes, multiplied by integer instructions.

Weights get one scale for each output, once, the largest being 127; states a scale and an offset for each token, anew
each time, from 0 for the smallest to 255 for the largest. So a vector never depends on the texts beside it, and no
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


class Rounded(NamedTuple):
    """States as ``steps * step + lowest``: steps 0 to 255, uint8 [..., D]; the others [..., 1]."""

    steps: Tensor
    step: Tensor
    lowest: Tensor

    @classmethod
    def of(cls, states: Tensor, *, spare: bool = False) -> Rounded:
        """Round states, [..., D]; ``spare``: nobody reads them again, and what is on the way takes their place."""
        lowest, highest = states.amin(dim=-1, keepdim=True), states.amax(dim=-1, keepdim=True)
        step = (highest - lowest).div_(255).clamp_(min=_TINY)
        scaled = torch.div(states, step, out=states if spare else None)
        # By way of signed bytes, which PyTorch makes more quickly: half a turn less, and half a turn again.
        signed = scaled.sub_(lowest / step + 128).round_().to(torch.int8)
        return cls(signed.view(torch.uint8).bitwise_xor_(128), step, lowest)


class Int8Linear(nn.Module):
    """A linear layer that was trained, for evaluation: [..., width in] -> [..., width out], float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self._scale = weight.abs().amax(dim=1).div_(127).clamp_(min=_TINY)
        integers = (weight / self._scale.unsqueeze(1)).round_().to(torch.int8)
        self._sums = integers.sum(dim=1) * self._scale
        self._bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)

    def forward(self, states: Tensor) -> Tensor:
        """Multiply states: [..., width in] -> [..., width out]."""
        return self.multiply(Rounded.of(states))

    def multiply(self, states: Rounded) -> Tensor:
        """Multiply states that are rounded: [..., width in] -> [..., width out]."""
        weight = self._packed, self._scale, self._zeros
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            states.steps, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], "none"
        )
        product.mul_(states.step).addcmul_(states.lowest, self._sums)
        return product if self._bias is None else product.add_(self._bias)


def is_available() -> bool:
    """Whether this machine's PyTorch has int8 layers, and multiplies the largest values rightly by them.

    Processors without instructions for it add in 16 bits, which large values overflow.
    """
    layer = nn.Linear(64, 16, bias=False)
    nn.init.ones_(layer.weight)
    states = torch.ones(4, 64).index_fill_(1, torch.tensor([0]), 0)
    try:
        return torch.allclose(Int8Linear(layer)(states), torch.tensor(63.0))
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
                setattr(module, name, Int8Linear(child))


def has_int8_layers(backbone: nn.Module) -> bool:
    """Whether ``quantize_layers`` has been here."""
    return any(isinstance(module, Int8Linear) for module in backbone.modules())
