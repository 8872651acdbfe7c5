"""Attention within rows of one length on a CPU, in evaluation: the steps that are quickest for the length.

PyTorch's one-step attention is made for long rows. Up to some two hundred tokens separate steps are quicker, if the
scores of a step stay in the caches; but where MKL is at home (see ``simcse_kit.blas``), not from a vector register's
length on, below which softmax in one step is slow.

Legend: n rows of L tokens, Q queries of each (L, or 1), H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simcse_kit import blas

# Tokens of the longest row that is attended to in separate steps.
LONGEST = 192
# Tokens of the shortest row that fills a vector register, which softmax in one step needs.
REGISTER = 16
# Bytes of scores at a time: what the caches of a core hold.
_SCORES = 1 << 19


def attend_rows(query: Tensor, key: Tensor, value: Tensor, *, into: Tensor) -> None:
    """Write what each query gathers within its row: softmax(q k' / sqrt(d)) v (Vaswani et al. 2017, equation 1).

    Args:
        query: [n, Q, H, d].
        key: [n, L, H, d].
        value: As ``key``.
        into: Where it goes, [n, Q, H, d].
    """
    queries, heads = query.shape[1:3]
    length = key.shape[1]
    if length > LONGEST or (length >= REGISTER and blas.mkl_is_quickest()):
        gathered = nn.functional.scaled_dot_product_attention(_by_head(query), _by_head(key), _by_head(value))
        into.copy_(_by_head(gathered))
        return
    rows = max(1, _SCORES // (heads * queries * length * query.element_size()))
    for place, *part in zip(*(torch.split(tensor, rows) for tensor in (into, query, key, value)), strict=True):
        gathered = _in_steps(*(_by_head(each).flatten(0, 1) for each in part))
        place.copy_(_by_head(gathered.view(-1, heads, *gathered.shape[1:])))


def _by_head(states: Tensor) -> Tensor:
    """[n, L, H, d] -> [n, H, L, d], and back."""
    return states.transpose(1, 2)


def _in_steps(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention in separate steps: [n H, Q, d], [n H, L, d] twice -> [n H, Q, d]."""
    scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
    if key.shape[1] < REGISTER:
        weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
        return torch.bmm(weights, value).div_(weights.sum(dim=-1, keepdim=True))
    # In single precision, since softmax of half precision is slower, but where lengths fit its registers.
    return torch.bmm(scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype), value)
