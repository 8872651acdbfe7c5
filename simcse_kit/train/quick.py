"""A training step on a CPU by quicker operations than PyTorch's modules choose.

Linear layers in float32 go through oneDNN, which is private to PyTorch: where it is missing, or gives something else,
they stay as they are. Dropout has other draws of the same distribution. Nothing of it outlasts the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simcse_kit.dropout import dropout

# Rows of states, [..., D], from which on oneDNN makes up for putting the weights into its own order.
_FEWEST_ROWS = 1_024


class QuickLayers:
    """The linear layers and dropouts of modules, in two ways of computing them."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Look through modules; on a device that is no CPU, nothing of them is made quicker."""
        self._forward: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        if device.type != "cpu":
            return
        for layer in dict.fromkeys(layer for module in modules for layer in module.modules()):
            if "forward" in vars(layer):  # somebody else's
                continue
            if type(layer) is nn.Dropout:
                self._forward.append((layer, partial(_dropout, layer)))
            elif type(layer) is nn.Linear and _linear_is_available():
                self._forward.append((layer, partial(_linear, layer)))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within this context they are quick."""
        for layer, forward in self._forward:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._forward:
                del layer.forward  # the class's own is behind it


def _dropout(module: nn.Dropout, states: Tensor) -> Tensor:
    return dropout(states, module.p) if module.training and not module.inplace else nn.Dropout.forward(module, states)


def _linear(module: nn.Linear, states: Tensor) -> Tensor:
    weight = module.weight
    quick = (
        states.dtype == weight.dtype == torch.float32
        and states.numel() >= _FEWEST_ROWS * states.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )
    if not quick:
        return nn.Linear.forward(module, states)
    found: Tensor = _Linear.apply(states, weight, module.bias)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.has_bias = bias is not None
        return _product(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t(), None) if of_states else None,
            rows.t() @ states.flatten(0, -2) if of_weight else None,
            rows.sum(dim=0) if ctx.has_bias and of_bias else None,
        )


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "none")
    return found


@lru_cache
def _linear_is_available() -> bool:
    """Try a linear layer and its gradients against PyTorch's own."""
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        sizes = (1, 4, 3), (2, 3), (2,)
        inputs = [torch.linspace(-1, 2, math.prod(size)).view(size).requires_grad_() for size in sizes]
        try:
            ours: Tensor = _Linear.apply(*inputs)  # type: ignore[no-untyped-call]
            own = nn.functional.linear(*inputs)
            found, expected = ([out, *torch.autograd.grad(out.square().sum(), inputs)] for out in (ours, own))
        except (AttributeError, RuntimeError):
            return False
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
