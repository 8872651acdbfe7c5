"""Objectives that compare a row with the other rows of the batch.

Legend: N rows in the batch (over all processes), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simcse_kit.objectives.settings import Similarity
from simcse_kit.objectives.vectors import in_single, unit


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    *negatives: Tensor,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    similarity: Similarity = "cosine",
    symmetric: bool = False,
) -> Tensor:
    r"""InfoNCE with in-batch negatives, as SimCSE trains with it (one direction) or CLIP (both).

    ``-log( exp(s_0(i,i)) / sum_j [exp(s_0(i,j)) + sum_h exp(s_h(i,j) + [i = j] log alpha)] )``, averaged over the
    anchors i, with ``s_0(i,j) = sim(anchor_i, positive_j) / temperature`` and ``s_h`` the same with the h-th of H sets
    of hard negatives. The logits of the own negatives, one a set, are raised by log alpha; the other rows' negatives
    count with weight 1.

    ``symmetric`` takes the mean with the opposite direction, in which every positive looks for its anchor among all
    anchors. Hard negatives are of the anchors, so that direction has none.

    Gao et al. 2021 (arXiv:2104.08821), equations 1 and 4 (unsupervised), 5 and 8 (supervised), table 7 (two sets of
    hard negatives), table D.1 (dot products); both directions: Radford et al. 2021 (arXiv:2103.00020), figure 3.

    Args:
        anchor: [N, D].
        positive: [N, D]; row i belongs to anchor i, the others are its negatives.
        *negatives: H sets of hard negatives, [N, D] each; row i of each is anchor i's own.
        temperature: Divides the similarities; above 0.
        hard_negative_weight: log alpha, in logits.
        similarity: sim, of unit vectors (``cosine``) or of vectors as they are (``dot``).
        symmetric: Whether to average both directions.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is log((1 + H) N) where alpha is 1.
    """
    scaled = unit if similarity == "cosine" else in_single
    rows, candidates = len(anchor), torch.cat([positive, *negatives])
    logits = scaled(anchor) @ scaled(candidates).T / temperature  # [N, (1 + H) N]
    for block in range(1, 1 + len(negatives)):
        logits.diagonal(block * rows).add_(hard_negative_weight)  # own negatives
    loss = _choose_own(logits)
    return (loss + _choose_own(logits[:, :rows].T)) / 2 if symmetric else loss


def nt_xent(
    first: Tensor, second: Tensor, *, temperature: float = 0.1, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """NT-Xent: each of the 2N vectors looks for its partner among all others, those of its own view included.

    ``-log( exp(cos(z_i, z_p(i)) / temperature) / sum_{k != i} exp(cos(z_i, z_k) / temperature) )`` for the 2N vectors
    z of both views, with p(i) the other view of the same row.

    Chen et al. 2020, SimCLR (arXiv:2002.05709), equation 1; Yan et al. 2021, ConSERT (arXiv:2105.11741), section 3.2.

    Args:
        first: One view, [N, D].
        second: The other view of the same rows, [N, D].
        temperature: Divides the cosines; above 0.
        reduction: ``mean`` over the 2N vectors, as in both papers, or ``sum`` of the two views' means, twice as large,
            as in ConSERT's published code.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors the mean is log(2N - 1).
    """
    vectors = torch.cat([unit(first), unit(second)])  # [2N, D]
    self_pairs = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.T / temperature).masked_fill(self_pairs, float("-inf"))  # [2N, 2N]
    partners = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    loss = F.cross_entropy(logits, partners)
    return 2 * loss if reduction == "sum" else loss


def bilinear_info_nce(anchor: Tensor, positive: Tensor, matrix: Tensor) -> Tensor:
    """InfoNCE in one direction with a learned bilinear score, as contrastive predictive coding (CPC) has it.

    ``-log( exp(u_i^T W v_i) / sum_j exp(u_i^T W v_j) )``, averaged over the anchors i. With the next sentence as the
    positive it is CPC on sentences, one step ahead.

    van den Oord et al. 2018 (arXiv:1807.03748), equations 3 (score) and 4 (loss).

    Args:
        anchor: u, [N, D]; the vectors are not scaled.
        positive: v, [N, D]; row i belongs to anchor i, the others are its negatives.
        matrix: W, [D, D].

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is log N.
    """
    return _choose_own(in_single(anchor) @ matrix @ in_single(positive).T)


class BilinearInfoNCE(nn.Module):
    """``bilinear_info_nce`` and its matrix, which starts as the identity / sqrt(D): scaled dot products."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(width) / width**0.5)

    def forward(self, views: Sequence[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of anchor and positive, [N, D] each, as ``{"bilinear_info_nce": scalar}``."""
        anchor, positive = views
        return {"bilinear_info_nce": bilinear_info_nce(anchor, positive, self.matrix)}


def consistency(first: Tensor, second: Tensor, *, temperature: float = 0.05) -> Tensor:
    """How differently two views of the batch see which rows are alike.

    ``(KL(P_i || Q_i) + KL(Q_i || P_i)) / 2``, averaged over the rows i, where P_i is the softmax over j != i of
    ``cos(first_i, first_j) / temperature`` and Q_i that of the second view. Nothing pulls rows together or apart: it
    is a term to add to an objective that does.

    The two-way divergence between two passes of Liang et al. 2021, R-Drop (arXiv:2106.14448), equation 2, of
    distributions of similarity instead of labels, as in Wei et al. 2021, CO2 (arXiv:2010.02217), with the batch as the
    memory bank.

    Args:
        first: One view, [N, D].
        second: The other view of the same rows, [N, D].
        temperature: Divides the cosines; above 0.

    Returns:
        The divergence, a scalar in float32 at least; 0 for equal views, and for fewer than three rows.
    """
    p, q = _log_likeness(first, temperature), _log_likeness(second, temperature)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1).mean() / 2


def _log_likeness(vectors: Tensor, temperature: float) -> Tensor:
    """Log-probabilities, [N, N], of the rows that each row might be mistaken for; (practically) none for itself."""
    vectors = unit(vectors)
    self_pairs = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    # A finite number: the difference of two infinite ones would not be 0 but undefined.
    lowest = torch.finfo(vectors.dtype).min
    return F.log_softmax((vectors @ vectors.T / temperature).masked_fill(self_pairs, lowest), dim=1)


def _choose_own(logits: Tensor) -> Tensor:
    """Mean cross-entropy of each row i's choice of column i among its candidates, [N, N or more] -> scalar."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
