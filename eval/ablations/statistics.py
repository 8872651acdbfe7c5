"""Whether a row of a grid differs from the reference row: by more than the seeds do, and by more than the pairs do.

The rule, for the difference on STS-B test:

1. Over seeds: runs of one seed see the same rows in the same order, so differences are taken seed by seed. Student's t
   of these paired differences gives their 95% interval and a p-value, and the p-values of all rows of a table are
   corrected by Holm's method (Holm 1979), since with twenty rows one in twenty would seem different by chance.
2. Over pairs: the pairs of STS-B test are resampled, the same ones for all runs; the mean difference over seeds has a
   95% interval from its standard error there (see ``simcse_kit.evaluate.bootstrap``).

A difference is significant if Holm's p-value is below 0.05 and the second interval excludes 0. With one seed nothing is
called significant.

Legend of shapes: S seeds, n pairs, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from simcse_kit.evaluate.bootstrap import RESAMPLES, resampled_correlation

RULE = (
    "A difference is the row's less the reference row's on STS-B test, the mean over seeds of differences of the same "
    "seed, in brackets the 95% interval of a paired t-test over seeds. **Bold** ones are significant: the p-values of "
    "this test, corrected over the rows of the table by Holm's method, are below 0.05, and the 95% interval of the "
    "same mean under a paired bootstrap over the test pairs excludes 0. With one seed there is no interval, and "
    "nothing is called significant."
)
LEVEL = 0.05


class Difference(BaseModel):
    """A row less the reference row, on STS-B test; x100.

    Attributes:
        value: Mean over seeds.
        ci95: Its interval over seeds; None for one seed.
        p_value: Of the paired t-test over seeds; None for one seed.
        p_holm: The same, corrected for the other rows of the table.
        pairs_ci95: Its interval over test pairs.
        significant: By the module's rule; None for one seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    ci95: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None
    pairs_ci95: tuple[float, float]
    significant: bool | None


class Sample:
    """The runs of one row on STS-B test: Spearman x100 of each, [S], and in each resample of the pairs, [S, B]."""

    def __init__(
        self, figures: Sequence[float], similarities: Sequence[NDArray[np.float64]], gold: NDArray[np.float64]
    ) -> None:
        """Resample the pairs, in the same way for every sample.

        Args:
            figures: Spearman x100 of each seed.
            similarities: Its predictions [n].
            gold: Gold scores [n].
        """
        n = len(gold)
        # Column b: how often resample b holds each pair.
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).T.astype(np.float64)
        self.n = n
        self.figures = np.array(figures)
        self.resampled = np.stack([100 * resampled_correlation(counts, run, gold, "spearman") for run in similarities])


def differences(samples: Sequence[Sample], reference: Sample) -> list[Difference]:
    """Compare rows with the reference row.

    Args:
        samples: The rows', of the reference's seeds in the same order.
        reference: The reference row's.

    Returns:
        The differences, in the rows' order.
    """
    by_seed = [sample.figures - reference.figures for sample in samples]
    by_pairs = [_interval_over_pairs(sample, reference) for sample in samples]
    if len(reference.figures) == 1:
        return [
            Difference(value=float(d[0]), ci95=None, p_value=None, p_holm=None, pairs_ci95=interval, significant=None)
            for d, interval in zip(by_seed, by_pairs, strict=True)
        ]
    tests = [paired_t(each) for each in by_seed]
    corrected = holm([p_value for _, p_value in tests])
    return [
        Difference(
            value=float(each.mean()),
            ci95=ci95,
            p_value=p_value,
            p_holm=p_holm,
            pairs_ci95=pairs,
            significant=p_holm < LEVEL and not pairs[0] <= 0 <= pairs[1],
        )
        for each, (ci95, p_value), p_holm, pairs in zip(by_seed, tests, corrected, by_pairs, strict=True)
    ]


def paired_t(each: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Student's t of paired differences [S], S at least 2.

    Returns:
        The 95% interval of their mean, and the two-sided p-value of a mean of 0; if all are equal, 1 for zeros, else 0.
    """
    from scipy.special import stdtr, stdtrit

    freedom = len(each) - 1
    mean, error = float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each))
    margin = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    if error == 0:
        return (mean, mean), float(mean == 0)
    return (mean - margin, mean + margin), 2 * float(stdtr(freedom, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests so that any wrong rejection among them is as rare as in one (Holm 1979).

    Returns:
        The i-th smallest of m times m - i + 1, but not below the one before it, and at most 1; in the order given.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(largest, 1.0)
    return corrected


def _interval_over_pairs(sample: Sample, reference: Sample) -> tuple[float, float]:
    """The 95% interval of the mean difference over seeds, from its standard error in the resamples."""
    from scipy.special import stdtrit

    value = float((sample.figures - reference.figures).mean())
    resampled = (sample.resampled - reference.resampled).mean(axis=0)
    # A plug-in variance is too small by (n - 1) / n.
    error = float(resampled[np.isfinite(resampled)].std(ddof=1)) * math.sqrt(sample.n / (sample.n - 1))
    margin = float(stdtrit(sample.n - 1, 1 - LEVEL / 2)) * error
    return value - margin, value + margin
