"""What the objectives do to vectors before they compare them.

Legend: N rows in the batch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-8


def in_single(vectors: Tensor) -> Tensor:
    """The vectors in float32 at least, since half precision cannot resolve the differences that losses are made of."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def unit(vectors: Tensor) -> Tensor:
    """The vectors at unit length, in float32 at least, [..., D]; a zero vector stays zero."""
    return F.normalize(in_single(vectors), dim=-1, eps=_EPS)


def cosines(u: Tensor, v: Tensor) -> Tensor:
    """The cosine of each row of ``u`` with the same row of ``v``: [N, D], [N, D] -> [N]."""
    return (unit(u) * unit(v)).sum(dim=-1)
