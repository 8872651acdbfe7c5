"""Attention within the rows of a packed batch on a CPU, in training: dropout on its probabilities, and gradients.

PyTorch's attention in one step knows no dropout on a CPU. Its separate steps, for each length of rows, are many small
ones for autograd to remember, and in half precision slow, as are all products of matrices so small. Here all rows are
one operation, in single precision at least, which saves no more than its gradients read.

Legend: P tokens of a packed batch, H heads, d width of a head, e of its values; n rows of one length L, Q queries of
each (L, or 1).
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simcse_kit.dropout import dropout as drop
from simcse_kit.packing import Packing
from simcse_kit.row_attention import REGISTER


def attend_by_length(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, dropout: float, scaling: float
) -> Tensor:
    """What queries gather, each within its row: dropout(softmax(q k' scaling)) v (Vaswani et al. 2017, equation 1).

    Args:
        query: [1, P, H, d], or of each row's first token alone, [1, B, H, d], in the order of ``packing.first``;
            differentiable, as are the others.
        key: [1, P, H, d].
        value: [1, P, H, e].
        packing: The rows.
        dropout: Rate of dropout on the attention probabilities, in [0, 1], rounded as in ``simcse_kit.dropout``.
        scaling: Factor on the dot products.

    Returns:
        [1, P or B, H, e].
    """
    found: Tensor = _Attention.apply(query, key, value, packing, dropout, scaling)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, dropout: float, scaling: float
    ) -> Tensor:
        dtype = torch.promote_types(query.dtype, torch.float32)
        by_head = [each.new_empty(each.shape, dtype=dtype) for each in (query, key, value)]
        gathered = query.new_empty(*query.shape[:-1], value.shape[-1])
        groups = list(packing.by_length(gathered, query, key, value, *by_head))
        sizes = [into.shape[1] * keys.shape[:3].numel() for into, _, keys, *_ in groups]
        factors = torch.split(drop(query.new_ones(sum(sizes), dtype=dtype), dropout), sizes) if dropout else None
        weights: list[Tensor] = []
        kept_weights: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for number, (into, *states) in enumerate(groups):
                q, k, v = map(_copied_by_head, states[:3], states[3:])
                weight = _softmax(_product(q, k.transpose(1, 2), scaling))
                kept = weight if factors is None else weight * factors[number].view(weight.shape)
                _put(torch.bmm(kept, v), into)
                weights.append(weight)
                kept_weights.append(kept)
        ctx.save_for_backward(*by_head, *chain.from_iterable(zip(weights, kept_weights, strict=True)))
        ctx.packing, ctx.scaling = packing, scaling
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        by_head, weights = saved[:3], zip(saved[3::2], saved[4::2], strict=True)
        found = [gradient.new_empty(each.shape) for each in by_head]
        groups = ctx.packing.by_length(gradient, *by_head, *found)
        with torch.autocast("cpu", enabled=False):
            for (given, *states), (weight, kept) in zip(groups, weights, strict=True):
                q, k, v = map(_seen_by_head, states[:3])
                g = _copied_by_head(given, q.new_empty(given.shape))
                # Of the scores: w (m g v' - sum over w m g v'), where m is what dropout multiplies w by.
                kept_gradient = torch.bmm(g, v.transpose(1, 2)).mul_(kept)
                of_scores = kept_gradient.addcmul_(weight, kept_gradient.sum(dim=-1, keepdim=True), value=-1)
                _put(_product(of_scores, k, ctx.scaling), states[3])
                _put(_product(of_scores.transpose(1, 2), q, ctx.scaling), states[4])
                _put(torch.bmm(kept.transpose(1, 2), g), states[5])
        return *found, None, None, None


def _copied_by_head(states: Tensor, place: Tensor) -> Tensor:
    """Copy [n, Q, H, d] into memory of as many values, head by head: [n H, Q, d]."""
    n, tokens, heads, width = states.shape
    place.view(n, heads, tokens, width).copy_(states.transpose(1, 2))
    return _seen_by_head(place)


def _seen_by_head(place: Tensor) -> Tensor:
    """What ``_copied_by_head`` has put into memory that is shaped [n, Q, H, d]: [n H, Q, d]."""
    n, tokens, heads, width = place.shape
    return place.view(n * heads, tokens, width)


def _put(found: Tensor, into: Tensor) -> None:
    """Put [n H, Q, d] into [n, Q, H, d]."""
    n, tokens, heads, width = into.shape
    into.copy_(found.view(n, heads, tokens, width).transpose(1, 2))


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """The products of matrices, [m, a, b] by [m, b, c], times a factor."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=factor)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; the scores are not needed again."""
    if scores.shape[-1] >= REGISTER:
        return scores.softmax(dim=-1)
    weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True))
