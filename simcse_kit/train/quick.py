"""A training step on a CPU by quicker operations than PyTorch's modules choose.

Linear layers in float32 are multiplied by numpy's BLAS where that is the quickest (see ``simcse_kit.blas``), else by
oneDNN, which is private to PyTorch: where it is missing, or gives something else, or PyTorch's own way is the quickest,
they stay as they are. Dropout has other draws of the same distribution. Nothing of it outlasts the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simcse_kit import blas
from simcse_kit.dropout import dropout

# Rows of states, [..., D], from which on oneDNN makes up for putting the weights into its own order.
_FEWEST_ROWS = 1_024


class _Products(NamedTuple):
    """How matrices are multiplied.

    Attributes:
        linear: States, weight and bias to what a linear layer makes of them.
        multiply: Two matrices to their product.
    """

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    multiply: Callable[[Tensor, Tensor], Tensor]


class QuickLayers:
    """The linear layers and dropouts of modules, in two ways of computing them."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Look through modules; on a device that is no CPU, nothing of them is made quicker."""
        every = (layer for module in modules for layer in module.modules()) if device.type == "cpu" else ()
        own = [layer for layer in dict.fromkeys(every) if "forward" not in vars(layer)]  # the others are somebody's
        self._dropouts = [layer for layer in own if type(layer) is nn.Dropout]
        self._linears = [layer for layer in own if type(layer) is nn.Linear]
        if self._linears and (blas.mkl_is_quickest() or not _onednn_is_available()):
            self._linears = []

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within this context they are quick."""
        with ExitStack() as stack:
            products, threads = _ONEDNN, blas.usable_threads() if self._linears else 0
            if threads and blas.Team.is_available():
                products = _by_blas(stack.enter_context(blas.Team(threads)))
            for dropped in self._dropouts:
                stack.enter_context(_computed_by(dropped, partial(_dropout, dropped)))
            for linear in self._linears:
                stack.enter_context(_computed_by(linear, partial(_linear, linear, products)))
            yield


@contextmanager
def _computed_by(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward  # the class's own is behind it


def _dropout(module: nn.Dropout, states: Tensor) -> Tensor:
    return dropout(states, module.p) if module.training and not module.inplace else nn.Dropout.forward(module, states)


def _linear(module: nn.Linear, products: _Products, states: Tensor) -> Tensor:
    weight = module.weight
    quick = (
        states.dtype == weight.dtype == torch.float32
        and states.numel() >= _FEWEST_ROWS * states.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )
    if not quick:
        return nn.Linear.forward(module, states)
    found: Tensor = _Linear.apply(states, weight, module.bias, products)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, products: _Products) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.has_bias, ctx.products = bias is not None, products
        return products.linear(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias, _ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)
        return (
            ctx.products.linear(gradient, weight.t(), None) if of_states else None,
            ctx.products.multiply(rows.t(), states.flatten(0, -2)) if of_weight else None,
            rows.sum(dim=0) if ctx.has_bias and of_bias else None,
            None,
        )


def _onednn_linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "none")
    return found


_ONEDNN = _Products(_onednn_linear, torch.mm)


def _by_blas(team: blas.Team) -> _Products:
    def linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = team.multiply(states.flatten(0, -2), weight.t())
        return (found if bias is None else found.add_(bias)).view(*states.shape[:-1], -1)

    return _Products(linear, team.multiply)


@lru_cache
def _onednn_is_available() -> bool:
    """Try a linear layer and its gradients against PyTorch's own."""
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        sizes = (1, 4, 3), (2, 3), (2,)
        inputs = [torch.linspace(-1, 2, math.prod(size)).view(size).requires_grad_() for size in sizes]
        try:
            ours: Tensor = _Linear.apply(*inputs, _ONEDNN)  # type: ignore[no-untyped-call]
            own = nn.functional.linear(*inputs)
            found, expected = ([out, *torch.autograd.grad(out.square().sum(), inputs)] for out in (ours, own))
        except (AttributeError, RuntimeError):
            return False
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
