"""Objectives of labelled pairs and triplets, one row at a time: those of SBERT, and the margin contrastive one.

Legend: N rows in the batch (over all processes), D width, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simcse_kit.objectives.settings import Distance, Feature
from simcse_kit.objectives.vectors import cosines, in_single

_FEATURES: dict[Feature, Callable[[Tensor, Tensor], Tensor]] = {
    "u": lambda u, v: u,
    "v": lambda u, v: v,
    "|u-v|": lambda u, v: (u - v).abs(),
    "u*v": lambda u, v: u * v,
    "max(u,v)^2": lambda u, v: torch.maximum(u, v).square(),
}


def softmax_classification(
    u: Tensor,
    v: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    features: Sequence[Feature] = ("u", "v", "|u-v|"),
) -> Tensor:
    """SBERT's classification objective: the cross-entropy of ``softmax(W [u; v; |u-v|] + b)``.

    Reimers & Gurevych 2019, SBERT (arXiv:1908.10084), section 3; other features: its table 6. The paper has no bias,
    its code has one. ``max(u,v)^2`` is from the scripts of ConSERT.

    Args:
        u: First sentences, [N, D].
        v: Second sentences, [N, D].
        labels: Class ids in [0, C), int64, [N].
        weight: W, [C, F * D].
        bias: b, [C].
        features: What is made of u and v, dimension by dimension, in this order: ``u``, ``v``, ``|u-v|``, ``u*v``,
            ``max(u,v)^2``.

    Returns:
        The loss, a scalar in float32 at least. With zero weights it is log C.
    """
    u, v = in_single(u), in_single(v)
    inputs = torch.cat([_FEATURES[name](u, v) for name in features], dim=-1)  # [N, F * D]
    return F.cross_entropy(F.linear(inputs, weight, bias), labels)


class SoftmaxClassification(nn.Module):
    """``softmax_classification`` and its classifier, which starts as a linear layer of torch's does."""

    def __init__(self, *, width: int, features: Sequence[Feature] = ("u", "v", "|u-v|"), num_classes: int = 3) -> None:
        super().__init__()
        self.features = tuple(features)
        self.classifier = nn.Linear(len(self.features) * width, num_classes)

    def forward(self, views: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The loss of two views, [N, D] each, and their class ids, [N], as ``{"softmax": scalar}``."""
        u, v = views
        weight, bias = self.classifier.weight, self.classifier.bias
        return {"softmax": softmax_classification(u, v, labels, weight, bias, features=self.features)}


def cosine_regression(u: Tensor, v: Tensor, gold: Tensor, *, max_score: float = 5.0) -> Tensor:
    """SBERT's regression objective: the mean of ``(cos(u, v) - gold / max_score)^2``.

    Reimers & Gurevych 2019 (arXiv:1908.10084), section 3; the division, by which golds of 0 to 5 become 0 to 1, is in
    its code.

    Args:
        u: First sentences, [N, D].
        v: Second sentences, [N, D].
        gold: Scores in [0, max_score], [N].
        max_score: The score of a pair that means the same; above 0.

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is the mean of (1 - gold / max_score)^2.
    """
    similarity = cosines(u, v)
    return F.mse_loss(similarity, gold.to(similarity.dtype) / max_score)


def triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0, distance: Distance = "euclidean"
) -> Tensor:
    """SBERT's triplet objective: the mean of ``max(d(anchor, positive) - d(anchor, negative) + margin, 0)``.

    Reimers & Gurevych 2019 (arXiv:1908.10084), section 3.

    Args:
        anchor: [N, D].
        positive: [N, D].
        negative: [N, D].
        margin: By how much the negative should be farther away; at least 0.
        distance: ``euclidean``, as in the paper, or ``cosine`` (1 - cosine).

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is the margin.
    """
    return F.relu(_DISTANCES[distance](anchor, positive) - _DISTANCES[distance](anchor, negative) + margin).mean()


def margin_contrastive(
    u: Tensor, v: Tensor, labels: Tensor, *, margin: float = 1.0, distance: Distance = "euclidean"
) -> Tensor:
    """Margin contrastive: similar pairs come together, the others move apart until the margin lies between them.

    The mean of ``d^2 / 2`` over similar pairs and ``max(margin - d, 0)^2 / 2`` over dissimilar ones.

    Hadsell et al. 2006, "Dimensionality reduction by learning an invariant mapping", equation 4, where label 1 means
    dissimilar.

    Args:
        u: First sentences, [N, D].
        v: Second sentences, [N, D].
        labels: 1 for similar pairs, 0 for dissimilar ones, [N].
        margin: The distance from which on dissimilar pairs cost nothing; above 0.
        distance: ``euclidean``, as in the paper, or ``cosine`` (1 - cosine).

    Returns:
        The loss, a scalar in float32 at least. With equal vectors it is margin^2 / 2 times the share of dissimilar
        pairs; these have no gradient then, since no direction leads apart more than another.
    """
    apart = _DISTANCES[distance](u, v)
    return torch.where(labels == 1, apart, F.relu(margin - apart)).square().mean() / 2


def _euclidean(u: Tensor, v: Tensor) -> Tensor:
    """Distances of corresponding rows, [N]; at equal rows the gradient is 0, where that of sqrt would be undefined."""
    distances: Tensor = torch.linalg.vector_norm(in_single(u) - in_single(v), dim=-1)
    return distances


def _cosine_distance(u: Tensor, v: Tensor) -> Tensor:
    return 1 - cosines(u, v)


_DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {"euclidean": _euclidean, "cosine": _cosine_distance}
