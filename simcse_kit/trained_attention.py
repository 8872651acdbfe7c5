"""Attention within the rows of a packed batch on a CPU, in training: dropout on its probabilities, and gradients.

PyTorch's attention in one step knows no dropout on a CPU. Its separate steps, for each length of rows, are many small
ones for autograd to remember, and in half precision slow, as are all products of matrices so small. Here all rows are
one operation, in single precision at least, which saves no more than its gradients read.

Legend: P tokens of a packed batch, H heads, d width of a head; n rows of one length L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simcse_kit.dropout import Kept, drops_some
from simcse_kit.packing import Packing
from simcse_kit.row_attention import REGISTER


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, dropout: float, scaling: float
) -> Tensor:
    """What each token gathers within its row: dropout(softmax(q k' scaling)) v (Vaswani et al. 2017, equation 1).

    Args:
        query: [1, P, H, d]; differentiable, as are the others.
        key: As ``query``.
        value: As ``query``.
        packing: The rows.
        dropout: Rate of dropout on the attention probabilities, in [0, 1), rounded as in ``simcse_kit.dropout``.
        scaling: Factor on the dot products.

    Returns:
        [1, P, H, d].
    """
    found: Tensor = _Attention.apply(query, key, value, packing, dropout, scaling)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, dropout: float, scaling: float
    ) -> Tensor:
        counts = [n * query.shape[2] * length**2 for n, length in packing.groups]
        kept = Kept.draw(sum(counts), dropout) if drops_some(dropout) else None
        dtype = torch.promote_types(query.dtype, torch.float32)
        by_head = [query.new_empty(query.shape, dtype=dtype) for _ in range(3)]
        gathered, weights = query.new_empty(query.shape), []
        groups = packing.by_length(gathered, query, key, value, *by_head)
        with torch.autocast("cpu", enabled=False):
            for (into, *states), drop in zip(groups, _split(kept, counts), strict=True):
                q, k, v = map(_copied_by_head, states[:3], states[3:])
                weights.append(_softmax(_product(q, k.transpose(1, 2), scaling)))
                _put(torch.bmm(_dropped(weights[-1], drop), v), into)
        ctx.save_for_backward(kept.mask if kept else None, *by_head, *weights)
        ctx.packing, ctx.counts, ctx.scaling, ctx.scale = packing, counts, scaling, kept.scale if kept else None
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mask, query, key, value, *weights = ctx.saved_tensors
        drops = _split(None if mask is None else Kept(mask, ctx.scale), ctx.counts)
        found = [gradient.new_empty(gradient.shape) for _ in range(3)]
        groups = ctx.packing.by_length(gradient, query, key, value, *found)
        with torch.autocast("cpu", enabled=False):
            for (given, *states), drop, weight in zip(groups, drops, weights, strict=True):
                q, k, v = (_seen_by_head(each) for each in states[:3])
                g = _copied_by_head(given, torch.empty_like(states[0]))
                of_scores = _softmax_gradient(_dropped(torch.bmm(g, v.transpose(1, 2)), drop), weight)
                _put(_product(of_scores, k, ctx.scaling), states[3])
                _put(_product(of_scores.transpose(1, 2), q, ctx.scaling), states[4])
                _put(torch.bmm(_dropped(weight, drop).transpose(1, 2), g), states[5])
        return *found, None, None, None


def _split(kept: Kept | None, counts: Sequence[int]) -> Sequence[Kept | None]:
    return [None] * len(counts) if kept is None else kept.split(counts)


def _dropped(values: Tensor, kept: Kept | None) -> Tensor:
    return values if kept is None else kept.of(values)


def _copied_by_head(states: Tensor, place: Tensor) -> Tensor:
    """Copy [n, L, H, d] into memory of as many values, head by head: [n H, L, d]."""
    n, length, heads, width = states.shape
    place.view(n, heads, length, width).copy_(states.transpose(1, 2))
    return _seen_by_head(place)


def _seen_by_head(place: Tensor) -> Tensor:
    """What ``_copied_by_head`` has put into memory that is shaped [n, L, H, d]: [n H, L, d]."""
    n, length, heads, width = place.shape
    return place.view(n * heads, length, width)


def _put(found: Tensor, into: Tensor) -> None:
    """Put [n H, L, d] into [n, L, H, d]."""
    n, length, heads, width = into.shape
    into.copy_(found.view(n, heads, length, width).transpose(1, 2))


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """The products of matrices, [m, a, b] by [m, b, c], times a factor."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=factor)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; the scores are not needed again."""
    if scores.shape[-1] >= REGISTER:
        return scores.softmax(dim=-1)
    weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """That of the scores, of that of the weights: w (g - sum over w g); the gradient is not needed again."""
    weighted = gradient.mul_(weights)
    return weighted.addcmul_(weights, weighted.sum(dim=-1, keepdim=True), value=-1)
