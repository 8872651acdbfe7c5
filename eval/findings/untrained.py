"""The backbone as it is, in several poolings and whitened: its scores, and how sure their differences are.

Nothing is trained, so there are no seeds; what is drawn anew is the pairs of the tests (see
``simcse_kit.evaluate.bootstrap``), the same ones for all encoders, within each subset.

Legend of shapes: n pairs, B resamples, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from eval.ablations.grid import DATA, Common
from eval.ablations.results import Scores
from eval.ablations.runs import Sets, measure_system
from eval.ablations.statistics import LEVEL
from eval.findings.claims import FigureName, UntrainedEncoder
from eval.result_files import public_name, read_json, write_json
from simcse_kit.data.readers import data_sha256, read_columns
from simcse_kit.data.sts import StsTask
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.evaluate.bootstrap import RESAMPLES, resampled_correlation
from simcse_kit.evaluate.measure import Measurement
from simcse_kit.evaluate.results import RECORDED_PACKAGES, package_versions
from simcse_kit.train.provenance import commit
from simcse_kit.whitening import whiten

Interval = tuple[float, float]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UntrainedRow(_Entry):
    """One encoder: its name and making as in ``findings.yaml``, its scores, and 95% intervals of two of them."""

    name: str
    encoder: UntrainedEncoder
    scores: Scores
    test_ci95: Interval | None
    sts7_ci95: Interval | None


class UntrainedDifference(_Entry):
    """One encoder's figure less another's, x100, with its 95% interval and the p-value of no difference."""

    above: str
    below: str
    figure: FigureName
    value: float
    ci95: Interval
    p_value: float


class UntrainedResult(_Entry):
    """The result file.

    Attributes:
        model: The backbone; of a directory the last part of its path.
        weights_sha256: Its weights'.
        whitened_on: Hashes of the NLI pairs whose sentences the whitening was fitted on.
        pairs: How many of them.
        rows: In the order of ``findings.yaml``.
        differences: Of the first of two rows less the second, where both figures are defined.
        versions: Of the packages.
        commit: Of the source tree.
    """

    model: str
    weights_sha256: str
    whitened_on: dict[str, str]
    pairs: int
    rows: list[UntrainedRow]
    differences: list[UntrainedDifference]
    versions: dict[str, str]
    commit: str | None

    def difference(self, above: str, below: str, figure: FigureName) -> UntrainedDifference | None:
        """One row's figure less another's, if it is there in either direction."""
        for found in self.differences:
            if (found.above, found.below, found.figure) == (above, below, figure):
                return found
            if (found.below, found.above, found.figure) == (above, below, figure):
                turned = {"above": above, "below": below, "value": -found.value}
                return found.model_copy(update=turned | {"ci95": (-found.ci95[1], -found.ci95[0])})
        return None


def read_untrained(path: Path) -> UntrainedResult:
    """Read a result file.

    Raises:
        UserError: If it is not one.
    """
    return read_json(path, TypeAdapter(UntrainedResult), "eval.findings")


def measure_encoders(
    encoders: Mapping[str, UntrainedEncoder], common: Common, sets: Sets, result_file: Path
) -> UntrainedResult:
    """Measure the backbone in all its poolings, unless the file has that already, and write the file.

    Args:
        encoders: By name.
        common: Has the backbone, and the NLI pairs (``nli_pairs``) on whose sentences to whiten: as many pairs as a
            run sees rows.
        sets: All seven tasks.
        result_file: Where the result lies.

    Raises:
        UserError: If the backbone or the pairs are not to be had, or there are too few pairs for whitening.
    """
    premises, hypotheses, _ = DATA["nli_pairs"]["columns"]
    source = common.files["nli_pairs"]
    columns = read_columns(source, [premises, hypotheses], limit=common.rows_seen)
    sentences = list(dict.fromkeys([*columns[premises], *columns[hypotheses]]))
    hashes = {Path(name).name: digest for name, digest in data_sha256(source).items()}
    weights = SentenceEncoder.from_pretrained(common.model).weights_sha256
    if result_file.is_file():
        before = read_untrained(result_file)
        same_rows = {row.name: row.encoder for row in before.rows} == dict(encoders)
        same_sets = all(row.scores.sets == sets.hashes for row in before.rows)
        made_with = (before.weights_sha256, before.whitened_on, before.pairs)
        if same_rows and same_sets and made_with == (weights, hashes, len(columns[premises])):
            return before
    rows, differences = _compared(
        {name: _measured(common.model, encoder, sentences, sets) for name, encoder in encoders.items()}, encoders, sets
    )
    result = UntrainedResult(
        model=public_name(common.model),
        weights_sha256=weights,
        whitened_on=hashes,
        pairs=len(columns[premises]),
        rows=rows,
        differences=differences,
        versions=package_versions(RECORDED_PACKAGES),
        commit=commit(),
    )
    write_json(result_file, result)
    return result


def _measured(model: str, made: UntrainedEncoder, sentences: Sequence[str], sets: Sets) -> tuple[Scores, Measurement]:
    encoder = SentenceEncoder.from_pretrained(model, pooling=made.pooling)
    return measure_system(whiten(encoder, sentences) if made.whitened else encoder, sets)


def _compared(
    measured: Mapping[str, tuple[Scores, Measurement]], encoders: Mapping[str, UntrainedEncoder], sets: Sets
) -> tuple[list[UntrainedRow], list[UntrainedDifference]]:
    """The rows with their intervals, and every two rows' differences."""
    tasks: dict[FigureName, list[StsTask]] = {"test": [sets.test], "sts7": [sets.test, *sets.others]}
    similarities = [measurement.similarities[: len(tasks["sts7"])] for _, measurement in measured.values()]
    drawn = dict(zip(measured, resample(tasks["sts7"], similarities), strict=True))  # [T, B] each
    averages = {name: each.mean(axis=0) for name, each in drawn.items()}
    rows, differences = [], []
    for name, (scores, measurement) in measured.items():
        sts7 = None if scores.sts7 is None else interval(scores.sts7, averages[name], tasks["sts7"])
        rows.append(
            UntrainedRow(
                name=name,
                encoder=encoders[name],
                scores=scores,
                test_ci95=measurement.results[0]["ci95"],
                sts7_ci95=sts7 and sts7[0],
            )
        )
    for (above, (first, _)), (below, (second, _)) in combinations(measured.items(), 2):
        for figure, of in tasks.items():
            one, other = getattr(first, figure), getattr(second, figure)
            apart = averages[above] - averages[below] if figure == "sts7" else drawn[above][0] - drawn[below][0]
            if one is not None and other is not None and (found := interval(one - other, apart, of)):
                ci95, p_value = found
                differences.append(
                    UntrainedDifference(
                        above=above, below=below, figure=figure, value=one - other, ci95=ci95, p_value=p_value
                    )
                )
    return rows, differences


def resample(
    tasks: Sequence[StsTask], similarities: Sequence[Sequence[Sequence[NDArray[np.float64]]]], *, seed: int = 0
) -> NDArray[np.float64]:
    """Score encoders in resamples of the tasks' pairs, drawn within each subset and the same for all encoders.

    Args:
        tasks: T tasks.
        similarities: For each encoder, task and subset, predictions [n].
        seed: Of the draws.

    Returns:
        Spearman x100 (aggregation ``all``) of each encoder, [encoders, T, B]; not finite where it is undefined.
    """
    draw = np.random.default_rng(seed)
    found = []
    for place, task in enumerate(tasks):
        sizes = [len(subset.scores) for subset in task.subsets]
        # Column b: how often resample b holds each pair.
        counts = [draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).T for n in sizes]
        together = np.concatenate(counts).astype(np.float64)
        gold = np.concatenate([subset.scores for subset in task.subsets])
        found.append(
            [
                100 * resampled_correlation(together, np.concatenate(encoder[place]), gold, "spearman")
                for encoder in similarities
            ]
        )
    return np.array(found).swapaxes(0, 1)


def interval(value: float, resampled: NDArray[np.float64], tasks: Sequence[StsTask]) -> tuple[Interval, float] | None:
    """The 95% interval of a figure of tasks from its resamples [B], and the two-sided p-value of 0.

    Returns:
        None where half of the resamples leave the figure undefined.
    """
    from scipy.special import stdtr, stdtrit

    finite = resampled[np.isfinite(resampled)]
    if 2 * len(finite) <= len(resampled):
        return None
    sizes = [len(subset.scores) for task in tasks for subset in task.subsets]
    freedom = sum(sizes) - len(sizes)
    # A plug-in variance is too small by (n - 1) / n for a subset of n pairs.
    error = float(finite.std(ddof=1)) * math.sqrt(sum(sizes) / freedom)
    margin = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    if error == 0:
        return (value, value), float(value == 0)
    return (value - margin, value + margin), 2 * float(stdtr(freedom, -abs(value) / error))
