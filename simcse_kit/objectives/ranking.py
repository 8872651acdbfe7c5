"""Objectives that order pairs of sentences as their gold scores do: CoSENT and AnglE.

Both sum over the pairs (of sentence pairs) whose golds differ; ties demand nothing. Only the order of the golds counts,
so their range does not matter.

Legend: N sentence pairs in the batch (over all processes), D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from simcse_kit.objectives.vectors import cosines, unit


def cosent(u: Tensor, v: Tensor, gold: Tensor, *, scale: float = 20.0) -> Tensor:
    """CoSENT: of two sentence pairs, the one with the higher gold should have the higher cosine.

    ``log(1 + sum_{gold_i > gold_j} exp(scale * (cos(u_j, v_j) - cos(u_i, v_i))))``

    Su 2022 (https://kexue.fm/archives/8847); the cosine objective of Li & Li 2023, AnglE (arXiv:2309.12871).

    Args:
        u: First sentences, [N, D].
        v: Second sentences, [N, D].
        gold: Scores, higher for more alike, [N].
        scale: Multiplies the cosines (1 / temperature); above 0.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is log(1 + number of ordered pairs).
    """
    return _rank(cosines(u, v), gold, scale)


def angle(u: Tensor, v: Tensor, gold: Tensor, *, scale: float = 20.0) -> Tensor:
    """The angle objective of AnglE: CoSENT with a similarity that does not flatten out where the cosine does.

    A vector's first half is the real part and its second half the imaginary part of z (from u) and w (from v), complex
    vectors of D / 2 dimensions. Their similarity is ``|Re q + Im q|`` of ``q = sum_k z_k conj(w_k) / (|z| |w|)``, their
    quotient without its length; Re q is the cosine of u and v. The order of u and v matters.

    This is one of the three parts of the paper's sum, beside the cosine objective (``cosent``) and one with in-batch
    negatives (``info_nce``); the sum is that of the objectives of a recipe, with their weights.

    Li & Li 2023 (arXiv:2309.12871), the angle objective, as in the published code. The paper's formula orders the pairs
    the other way round, by a difference that is to be small, while what it defines (and the code computes) is 1 for
    equal vectors.

    Args:
        u: First sentences, [N, D], D even.
        v: Second sentences, [N, D].
        gold: Scores, higher for more alike, [N].
        scale: Multiplies the similarities (1 / temperature); above 0.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is log(1 + number of ordered pairs).
    """
    (z_re, z_im), (w_re, w_im) = unit(u).chunk(2, dim=-1), unit(v).chunk(2, dim=-1)
    re, im = z_re * w_re + z_im * w_im, z_im * w_re - z_re * w_im  # [N, D / 2]
    return _rank((re + im).sum(dim=-1).abs(), gold, scale)


def _rank(similarity: Tensor, gold: Tensor, scale: float) -> Tensor:
    """``log(1 + sum_{gold_i > gold_j} exp(scale * (similarity_j - similarity_i)))``: [N], [N] -> scalar."""
    excess = scale * (similarity[None, :] - similarity[:, None])  # [N, N]; (i, j): by how much j is above i
    unordered = gold[:, None] <= gold[None, :]
    terms = excess.masked_fill(unordered, float("-inf")).flatten()
    return F.pad(terms, (1, 0)).logsumexp(dim=0)  # the padding is log 1
