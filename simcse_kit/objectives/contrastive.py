"""Contrastive objectives: pure functions on pooled views, and the modules that hold their settings.

Legend: N rows in the batch (over all processes), D width, V views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-8


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
) -> Tensor:
    r"""InfoNCE in one direction with in-batch negatives, as SimCSE trains with it.

    ``-log( exp(s(i,i)) / sum_j [exp(s(i,j)) + exp(s'(i,j) + [i = j] log alpha)] )``, averaged over the anchors i, with
    ``s(i,j) = cos(anchor_i, positive_j) / temperature`` and ``s'`` the same with the hard negatives. The own negative's
    logit alone is raised by log alpha; the other rows' negatives count with weight 1.

    Gao et al. 2021 (arXiv:2104.08821), equations 1 and 4 (unsupervised), 5 and 8 (supervised).

    Args:
        anchor: [N, D].
        positive: [N, D]; row i belongs to anchor i, the others are its negatives.
        negative: Hard negatives, [N, D], or None.
        temperature: Divides the cosines; above 0.
        hard_negative_weight: log alpha, in logits.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is log N (log 2N with hard negatives).
    """
    anchor, positive = _unit(anchor), _unit(positive)
    logits = anchor @ positive.T / temperature  # [N, N]
    if negative is not None:
        own = hard_negative_weight * torch.eye(len(anchor), dtype=anchor.dtype, device=anchor.device)
        logits = torch.cat([logits, anchor @ _unit(negative).T / temperature + own], dim=1)  # [N, 2N]
    return F.cross_entropy(logits, torch.arange(len(anchor), device=anchor.device))


class InfoNCE(nn.Module):
    """``info_nce`` of the views: anchor and positive, or anchor, positive and hard negative."""

    def __init__(self, *, temperature: float = 0.05, hard_negative_weight: float = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.hard_negative_weight = hard_negative_weight

    def forward(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """The loss of V views, [N, D] each, as ``{"info_nce": scalar}``."""
        loss = info_nce(*views, temperature=self.temperature, hard_negative_weight=self.hard_negative_weight)
        return {"info_nce": loss}


def _unit(vectors: Tensor) -> Tensor:
    """Vectors at unit length, in float32 at least, since half precision cannot resolve cosines at this temperature."""
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1, eps=_EPS)
