"""How sure a correlation is: bootstrap intervals, and paired comparisons of two encoders.

A resample draws each subset's pairs anew, with replacement and in the subset's own number (Efron & Tibshirani, 1993, An
Introduction to the Bootstrap). All three aggregations draw within subsets, `all` too: a task is built to hold, say, 750
pairs of MSRvid, so that a repetition of the task would change its pairs and not its make-up.

Intervals are symmetric on the scale on which an estimate is nearly normal: Fisher's z for a correlation, the plain
scale for a difference of two. For 30 to 300 normal pairs, tied or not, 93.5 to 97.1% of 95% intervals contained
the population's correlation; percentile and BCa intervals of fewer than 100 pairs fell to 91%. Heavy tails remain hard:
the Pearson correlation of 100 pairs of log-normal values is contained by about nine in ten.

They answer for the choice of the pairs alone, taken as independent of each other: not for the training seed, nor for a
sentence that is part of several pairs.

Legend of shapes: n pairs, B resamples, G groups of tied values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simcse_kit.evaluate.sts import Aggregation, Metric

# One value per pair, an array a subset, as `pair_similarities` gives them for a task.
Subsets = Sequence[NDArray[np.float64]]

RESAMPLES = 1000  # the standard error is then known to 1 / sqrt(2 * 1000) = 2%
_COUNTS_AT_ONCE = 2**18
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """How much better the first of two encoders does on the same pairs; correlations are x100.

    Attributes:
        value: The first one's figure minus the second one's.
        ci95: The 95% interval of `value`.
        p_value: Two-sided, of the hypothesis that the two are equally good; below 0.05 where `ci95` excludes 0.
    """

    value: float
    ci95: tuple[float, float]
    p_value: float


def correlation_interval(
    similarities: Subsets,
    gold: Subsets,
    *,
    metric: Metric,
    aggregation: Aggregation,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of a task's correlation r: tanh(atanh(r) -+ q s).

    s is the resamples' standard error of Fisher's z = atanh(r), and q a quantile of Student's t. A resample that
    correlates perfectly, as happens to a handful of pairs, has a large but finite z.

    Args:
        similarities: Predictions [n] of each subset.
        gold: Gold scores [n] of each subset.
        metric: The correlation.
        aggregation: How subsets combine.
        level: Probability, in (0, 1), with which such intervals are to contain the correlation of the population.
        resamples: Number of resamples; those in which the correlation is undefined do not count.
        seed: The resamples' seed.

    Returns:
        Lower and upper bound, x100, within [-100, 100]; None where the correlation is undefined, in the sample or in
        most resamples, or perfect, so that resamples cannot tell how sure it is.
    """
    sample = _bootstrap([similarities], gold, metric, aggregation, resamples, seed)
    if sample is None:
        return None
    (r,), (resampled,) = sample
    if 1 - abs(r) < _ROUNDING:
        return None
    error, freedom = _standard_error(np.arctanh(np.clip(resampled, _ROUNDING - 1, 1 - _ROUNDING)), gold)
    z, margin = math.atanh(r), _margin(error, freedom, level)
    return 100 * math.tanh(z - margin), 100 * math.tanh(z + margin)


def paired_difference(
    first: Subsets,
    second: Subsets,
    gold: Subsets,
    *,
    metric: Metric,
    aggregation: Aggregation,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference | None:
    """Compare two encoders on the same resamples of a task, so that what makes a pair hard for both cancels.

    Args:
        first: Predictions [n] of the first encoder for each subset.
        second: Those of the second one, for the same pairs.
        gold: Gold scores [n] of each subset.
        metric: The correlation.
        aggregation: How subsets combine.
        resamples: Number of resamples; those in which a correlation is undefined do not count.
        seed: The resamples' seed.

    Returns:
        The difference; None where one of the correlations is undefined, in the sample or in most resamples.
    """
    sample = _bootstrap([first, second], gold, metric, aggregation, resamples, seed)
    if sample is None:
        return None
    from scipy.special import stdtr

    figures, resampled = sample
    value = 100 * float(figures[0] - figures[1])
    error, freedom = _standard_error(100 * (resampled[0] - resampled[1]), gold)
    margin = _margin(error, freedom, 0.95)
    # Predictions of equal order (for Pearson: proportional ones) differ by a rounding error alone, in every resample.
    p_value = 2 * float(stdtr(freedom, -abs(value) / max(error, 100 * _ROUNDING)))
    return Difference(value, (value - margin, value + margin), p_value)


def resampled_correlation(
    counts: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], metric: Metric
) -> NDArray[np.float64]:
    """Correlate `x` and `y` in many resamples at once, each given by how often it holds every pair.

    Args:
        counts: Whole numbers [n, B]; columns of equal sum.
        x: Values [n].
        y: Values [n].
        metric: The correlation; Spearman gives ties, also those made by repetition, their average rank.

    Returns:
        The correlations [B], in [-1, 1]; not finite where `x` or `y` is constant in a resample.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return _spearman(counts, x, y) if metric == "spearman" else _pearson(counts, x, y)


def _standard_error(resampled: NDArray[np.float64], gold: Subsets) -> tuple[float, int]:
    """Standard error of a figure from its resamples [B], and the degrees of freedom of Student's t that goes with it.

    Like every plug-in variance, that of resamples is too small, by (n - 1) / n for a subset of n pairs; this and a
    normal quantile make intervals of few pairs too short (Hesterberg, 2015, What Teachers Should Know about the
    Bootstrap, section 3.2).
    """
    n = sum(len(scores) for scores in gold)
    freedom = n - len(gold)
    return float(resampled.std(ddof=1)) * math.sqrt(n / freedom), freedom


def _margin(error: float, freedom: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2)) * error


def _bootstrap(
    predictions: Sequence[Subsets], gold: Subsets, metric: Metric, aggregation: Aggregation, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Figures of some encoders in the sample [encoders] and in those resamples that define all of them [encoders, B].

    Returns:
        None if half of the resamples leave a figure undefined, as all of them do where the sample does, or if no
        subset has a second pair to draw.
    """
    sizes = [len(scores) for scores in gold]
    if max(sizes) < 2:
        return None
    figures = _figures([np.ones((n, 1)) for n in sizes], predictions, gold, metric, aggregation)[:, 0]
    rng = np.random.default_rng(seed)
    chunk = max(1, _COUNTS_AT_ONCE // sum(sizes))
    chunks = []
    for done in range(0, resamples, chunk):
        counts = [_draw_counts(rng, n, min(chunk, resamples - done)) for n in sizes]
        chunks.append(_figures(counts, predictions, gold, metric, aggregation))
    resampled = np.concatenate(chunks, axis=1)
    defined = np.isfinite(resampled).all(axis=0)
    return (figures, resampled[:, defined]) if defined.mean() > 0.5 else None


def _draw_counts(rng: np.random.Generator, n: int, resamples: int) -> NDArray[np.float64]:
    """How often each of n pairs is drawn in n draws: [n, B]."""
    cells = rng.integers(n, size=(n, resamples)) * resamples + np.arange(resamples)
    return np.bincount(cells.ravel(), minlength=n * resamples).reshape(n, resamples).astype(np.float64)


def _figures(
    counts: Subsets, predictions: Sequence[Subsets], gold: Subsets, metric: Metric, aggregation: Aggregation
) -> NDArray[np.float64]:
    """Each encoder's figure in each resample [encoders, B], from every subset's counts [n, B]."""
    if aggregation == "all":
        together, scores = np.concatenate(counts), np.concatenate(gold)
        return np.stack(
            [resampled_correlation(together, np.concatenate(predicted), scores, metric) for predicted in predictions]
        )
    weights = [len(scores) if aggregation == "wmean" else 1 for scores in gold]
    correlations = [
        [resampled_correlation(*subset, metric) for subset in zip(counts, predicted, gold, strict=True)]
        for predicted in predictions
    ]
    return np.average(correlations, axis=1, weights=weights)


def _pearson(counts: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    # Centred and of range 1, so that differences of moments keep their digits and a constant resample shows.
    x, y = ((values - values.mean()) / np.ptp(values) for values in (x, y))
    mean_x, mean_y, xx, yy, xy = np.stack([x, y, x * x, y * y, x * y]) @ counts / counts[:, 0].sum()
    variance_x, variance_y = (np.where(v > _ROUNDING, v, np.nan) for v in (xx - mean_x**2, yy - mean_y**2))
    correlations: NDArray[np.float64] = (xy - mean_x * mean_y) / np.sqrt(variance_x * variance_y)
    return correlations


def _spearman(counts: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    products = counts
    variances = []
    for values in (x, y):
        ranks, sizes, group = _group_ranks(counts, values)
        products = products * ranks[group]
        variances.append((sizes * ranks**2).sum(axis=0))
    correlations: NDArray[np.float64] = products.sum(axis=0) / np.sqrt(variances[0] * variances[1])
    return correlations


def _group_ranks(
    counts: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Rank values in each resample by running sums over the groups of tied values, sorted once for all resamples.

    Returns:
        The groups' average ranks [G, B], less the mean of all ranks; their sizes [G, B]; the group of each value [n].
    """
    order = np.argsort(values, kind="stable")
    is_first = np.diff(values[order], prepend=np.nan) != 0
    group = np.empty(len(values), dtype=np.intp)
    group[order] = np.cumsum(is_first) - 1
    sizes = np.add.reduceat(counts[order], np.flatnonzero(is_first), axis=0)
    # A group's ranks run from `up to` - size + 1 to `up to`; all of them from 1 to n.
    up_to = np.cumsum(sizes, axis=0)
    return up_to - (sizes + up_to[-1]) / 2, sizes, group
