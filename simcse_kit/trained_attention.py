"""Attention within the rows of a packed batch on a CPU, in training: dropout on its probabilities, and gradients.

PyTorch's attention in one step knows no dropout on a CPU. Its separate steps, for each length of rows, are many small
ones, for autograd to remember too, and in half precision slow, as are all products of matrices so small. Here all rows
are one operation, in single precision at least, which saves no more than its gradients read; and rows of nearly the
same length are padded to the longest of them, in attention alone.

Legend: P tokens of a packed batch, B rows, H heads, d width of a head, e of its values; n rows of a group, padded to L
tokens; Q queries of each (L, or 1); S tokens and paddings of all groups, times heads.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simcse_kit.dropout import Draws
from simcse_kit.packing import Packing
from simcse_kit.row_attention import REGISTER

# Of so many lengths the rows are padded to the longest of them: less waste than small products of matrices are.
_LENGTHS = 8


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
        layout = _layout(packing, query.shape[2])
        own, every = layout.first if query.shape[1] < key.shape[1] else layout.every, layout.every
        q, k, v = own.take(query, dtype), every.take(key, dtype), every.take(value, dtype)
        gathered = v.new_empty(len(q), v.shape[1])
        groups = list(zip(own.groups(gathered), own.groups(q), every.groups(k), every.groups(v), strict=True))
        sizes = [queries.shape[:2].numel() * keys.shape[1] for _, queries, keys, _ in groups]
        draws = Draws.of(sum(sizes), dropout).split(sizes) if dropout else None
        weights: list[Tensor] = []
        kept_weights: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for number, (into, queries, keys, values) in enumerate(groups):
                mask = layout.masks[number].to(dtype)
                weight = _softmax(torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scaling))
                kept = weight if draws is None else draws[number].applied(weight)
                torch.bmm(kept, values, out=into)
                weights.append(weight)
                kept_weights.append(kept)
        ctx.save_for_backward(q, k, v, *chain.from_iterable(zip(weights, kept_weights, strict=True)))
        ctx.own, ctx.every, ctx.scaling = own, every, scaling
        return own.bring_back(gathered, query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, own, every = ctx.saved_tensors, ctx.own, ctx.every
        q, k, v, *weights = saved
        g = own.take(gradient, q.dtype).index_fill_(0, own.padding, 0)
        found = [torch.empty_like(each) for each in (q, k, v)]
        by_group = [
            slots.groups(each)
            for slots, each in zip((own, own, every, every, own, every, every), (g, q, k, v, *found), strict=True)
        ]
        with torch.autocast("cpu", enabled=False):
            for group, weight, kept in zip(zip(*by_group, strict=True), weights[::2], weights[1::2], strict=True):
                given, queries, keys, values, *into = group
                # Of the scores: w (m g v' - sum over w m g v'), where m is what dropout multiplies w by.
                kept_gradient = torch.bmm(given, values.transpose(1, 2)).mul_(kept)
                of_scores = kept_gradient.addcmul_(weight, kept_gradient.sum(dim=-1, keepdim=True), value=-1)
                _multiply(of_scores, keys, ctx.scaling, into=into[0])
                _multiply(of_scores.transpose(1, 2), queries, ctx.scaling, into=into[1])
                torch.bmm(kept.transpose(1, 2), given, out=into[2])
        of_query, of_key, of_value = found
        brought = own.bring_back(of_query, gradient.dtype), every.bring_back(of_key, gradient.dtype)
        return *brought, every.bring_back(of_value, gradient.dtype), None, None, None


class _Slots(NamedTuple):
    """Where the heads of tokens stand when those of a row are side by side, and rows are padded.

    Attributes:
        taken: Which of the P H each slot holds, [S]; padding, one of its row's.
        places: The slot of each of them, [P H].
        padding: The slots that are padding.
        shapes: (n H, L) of each group.
        heads: H.
    """

    taken: Tensor
    places: Tensor
    padding: Tensor
    shapes: list[tuple[int, int]]
    heads: int

    def take(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """Put states into slots: [1, P, H, d] -> [S, d]."""
        return states.reshape(-1, states.shape[-1]).index_select(0, self.taken).to(dtype)

    def bring_back(self, found: Tensor, dtype: torch.dtype) -> Tensor:
        """Take them out: [S, d] -> [1, P, H, d]."""
        return found.index_select(0, self.places).to(dtype).view(1, -1, self.heads, found.shape[-1])

    def groups(self, slots: Tensor) -> list[Tensor]:
        """Look at each group: [S, d] -> [n H, L, d] each."""
        parts = torch.split(slots, [rows * length for rows, length in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]


class _Layout(NamedTuple):
    """A batch in groups of rows of nearly the same length, the longest first.

    Attributes:
        every: All tokens.
        first: The first of each row.
        masks: 0 for a row's own tokens, -inf for padding: [n H, 1, L] each.
    """

    every: _Slots
    first: _Slots
    masks: list[Tensor]


@lru_cache(maxsize=2)
def _layout(packing: Packing, heads: int) -> _Layout:
    """Lay a batch out, once for all layers."""
    lengths = [length for n, length in packing.groups for _ in range(n)]
    sizes = [len(list(rows)) for _, rows in groupby(math.ceil(length / _LENGTHS) for length in lengths)]
    taken, owned, masks, shapes = [], [], [], []
    with torch.device("cpu"):
        head = torch.arange(heads).unsqueeze(1)
        starting, rows = (torch.split(each, sizes) for each in (packing.first, torch.tensor(lengths)))
        for starts, own in zip(starting, rows, strict=True):
            token, last = torch.arange(int(own[0])), own.unsqueeze(1) - 1
            is_own = (token <= last).unsqueeze(1).expand(-1, heads, -1)  # [n, H, L]
            stands = (starts.unsqueeze(1) + token.minimum(last)).unsqueeze(1)
            taken.append((stands * heads + head).flatten())
            owned.append(is_own.flatten())
            masks.append(torch.zeros(is_own.shape).masked_fill_(~is_own, -math.inf).flatten(0, 1).unsqueeze(1))
            shapes.append((len(own) * heads, len(token)))
        slots, is_own = torch.cat(taken), torch.cat(owned)
        places = torch.empty(sum(lengths) * heads, dtype=torch.int64)
        places[slots[is_own]] = is_own.nonzero().squeeze(1)
        same = torch.arange(len(lengths) * heads)
    every = _Slots(slots, places, (~is_own).nonzero().squeeze(1), shapes, heads)
    return _Layout(every, _Slots(same, same, same[:0], [(n, 1) for n, _ in shapes], heads), masks)


def _multiply(left: Tensor, right: Tensor, factor: float, *, into: Tensor) -> None:
    """The products of matrices, [m, a, b] by [m, b, c], times a factor."""
    torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=factor, out=into)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; the scores are not needed again."""
    if scores.shape[-1] >= REGISTER:
        return scores.softmax(dim=-1)
    weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True))
