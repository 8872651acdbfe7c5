"""Semantic textual similarity, scored as SentEval and the SimCSE paper score it.

A pair's prediction is the cosine of its two vectors; a task's figure is the correlation of predictions with human
scores, x100. STS12-16 consist of subsets, and the field combines them in three ways that differ by several points:
``all`` (one correlation over the pairs of all subsets: SimCSE, ConSERT), ``mean`` and ``wmean`` (the average of the
subsets' correlations, plain or weighted by pairs: SentEval). Figures of different aggregations are not comparable.

Legend of shapes: n pairs, D vector dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.sts import StsTask
from simcse_kit.evaluate.vectors import Encoder, Vectors

Metric = Literal["spearman", "pearson"]
Aggregation = Literal["all", "mean", "wmean"]

_COSINE_DECIMALS = 10


@dataclass(frozen=True)
class Figure:
    """A correlation over `n` pairs.

    Attributes:
        value: The correlation x100, in [-100, 100], unrounded; None if it is undefined.
        n: Number of pairs.
        reason: Why `value` is None, else None.
    """

    value: float | None
    n: int
    reason: str | None = None


@dataclass(frozen=True)
class StsScore:
    """What an encoder scores on a task, with the protocol that gives the figure its meaning."""

    task: StsTask
    metric: Metric
    aggregation: Aggregation
    figure: Figure
    subsets: Mapping[str, Figure]

    @property
    def value(self) -> float | None:
        """The task's correlation x100; None if it is undefined."""
        return self.figure.value


def score_sts(
    encoder: Encoder, task: StsTask, *, metric: Metric = "spearman", aggregation: Aggregation = "all"
) -> StsScore:
    """Score an encoder on one STS task.

    Args:
        encoder: The encoder; called once, with each distinct sentence of the task.
        task: Sentence pairs with gold scores.
        metric: The correlation.
        aggregation: How subsets combine (see the module's docstring); all three agree on a task of one subset.

    Returns:
        The task's figure and those of its subsets.
    """
    return score_tasks(encoder, [task], metric=metric, aggregation=aggregation)[0]


def score_tasks(
    encoder: Encoder, tasks: Sequence[StsTask], *, metric: Metric = "spearman", aggregation: Aggregation = "all"
) -> list[StsScore]:
    """Score an encoder on several STS tasks with a single call to it; arguments as for `score_sts`."""
    return [
        score_similarities(task, similarities, metric=metric, aggregation=aggregation)
        for task, similarities in zip(tasks, pair_similarities(encoder, tasks), strict=True)
    ]


def pair_similarities(encoder: Encoder, tasks: Sequence[StsTask]) -> list[list[NDArray[np.float64]]]:
    """Predict every pair of every task, from one call that encodes each distinct sentence once.

    Returns:
        For each task, for each of its subsets, the cosines [n].
    """
    vectors = Vectors.of(encoder, (sentence for task in tasks for sentence in task.sentences))
    return [
        [
            cosine_similarity(vectors.encode(subset.sentences1), vectors.encode(subset.sentences2))
            for subset in task.subsets
        ]
        for task in tasks
    ]


def cosine_similarity(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of corresponding rows of `u` and `v` [n, D], in float64: [n].

    As in SentEval, values that are not finite are replaced (NaN by 0), and a zero vector has cosine 0 with any other.
    Cosines are rounded to ten decimals, far below what float32 vectors resolve, so that pairs of parallel vectors tie
    exactly and their rank is not left to the last bit of a sum.
    """
    left, right = (np.nan_to_num(side).astype(np.float64) for side in (u, v))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.zeros(len(left))
    np.divide(np.einsum("nd,nd->n", left, right), norms, out=cosines, where=norms > 0)
    return cosines.round(_COSINE_DECIMALS)


def correlate(similarities: NDArray[np.float64], gold: NDArray[np.float64], metric: Metric) -> Figure:
    """Correlate predictions with gold scores, both [n]; Spearman gives ties their average rank.

    Returns:
        The correlation x100, undefined over fewer than two pairs or where one side is constant.
    """
    n = len(gold)
    if n < 2:
        return Figure(None, n, f"a correlation needs at least 2 pairs, here {n}")
    for what, values in (("cosine similarities", similarities), ("gold scores", gold)):
        if np.ptp(values) == 0:
            return Figure(None, n, f"all {n} {what} are equal ({values[0]:g})")
    from scipy.stats import pearsonr, spearmanr

    result = spearmanr(similarities, gold) if metric == "spearman" else pearsonr(similarities, gold)
    return Figure(100 * float(result.statistic), n)


def score_similarities(
    task: StsTask, similarities: Sequence[NDArray[np.float64]], *, metric: Metric, aggregation: Aggregation
) -> StsScore:
    """Score predictions for a task, one array [n] a subset; other arguments as for `score_sts`."""
    subsets = {
        subset.name: correlate(predicted, subset.scores, metric)
        for subset, predicted in zip(task.subsets, similarities, strict=True)
    }
    if aggregation == "all":
        gold = np.concatenate([subset.scores for subset in task.subsets])
        figure = correlate(np.concatenate(similarities), gold, metric)
    else:
        figure = _average(subsets, weighted=aggregation == "wmean")
    return StsScore(task, metric, aggregation, figure, subsets)


def _average(subsets: Mapping[str, Figure], *, weighted: bool) -> Figure:
    n = sum(figure.n for figure in subsets.values())
    total = weights = 0.0
    for name, figure in subsets.items():
        if figure.value is None:
            return Figure(None, n, f"subset {name}: {figure.reason}")
        weight = figure.n if weighted else 1
        total += weight * figure.value
        weights += weight
    return Figure(total / weights, n)
