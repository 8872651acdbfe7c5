"""Whether the papers' findings hold on a backbone, from the results of its grids and of its untrained encoders.

The rule:

1. A comparison is a row that is claimed to be above, less a row that is claimed to be below. Of two trained rows it is
   Student's paired t over the seeds that both have (runs of one seed see the same rows in the same order), of a trained
   row and an untrained encoder the same with a constant; of two untrained encoders, which have no seeds, the paired
   bootstrap over the test pairs.
2. A finding claims all its comparisons at once. If all point the claimed way, its p-value is the largest of theirs: all
   must be sure (an intersection-union test; Berger 1982). If one points the other way, it is the smallest of those that
   do, times the number of comparisons (Bonferroni): one that is sure refutes the claim.
3. The p-values of all findings tested on a backbone are one family, corrected by Holm's method. Below 0.05 a finding
   "holds" in the first case and "does not hold" in the second; else it is "not significant", as it always is with a
   single seed, and where the seeds do not differ, so that nothing is known of their spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from eval.ablations.results import GridResult, Scores, read_grid_result
from eval.ablations.statistics import LEVEL, holm, paired_t
from eval.findings.claims import UNTRAINED, FigureName, Finding, Place
from eval.findings.untrained import Interval, UntrainedResult, read_untrained
from simcse_kit.errors import UserError

RULE = (
    "A difference is the mean over seeds, with the 95% interval of a paired t-test over them, or of a paired bootstrap "
    "over the test pairs where nothing is trained. A finding of several comparisons is as sure as its least sure one, "
    "which is the one shown; if some point the other way, it is refuted by the surest of those, times the number of "
    "comparisons. p is corrected by Holm's method over all findings that were tested on the backbone; at 0.05 and "
    "above a finding is not significant, and with one seed none is."
)

Outcome = Literal["holds", "does not hold", "not significant", "undefined", "not run"]


@dataclass(frozen=True)
class Comparison:
    """A row claimed to be above, less one claimed to be below: mean, 95% interval, p-value (None without a spread)."""

    above: Place
    below: Place
    value: float
    ci95: Interval | None
    p_value: float | None


@dataclass(frozen=True)
class Verdict:
    """What became of a finding.

    Attributes:
        finding: It.
        outcome: As in the module's rule; "undefined" if a figure is, "not run" if a row's was not measured.
        deciding: The comparison that decides it; None where one is undefined or not run.
        p_holm: The corrected p-value; None where nothing was tested.
        lacking: The rows that are undefined or not run; of a grid that was not run at all only its name.
    """

    finding: Finding
    outcome: Outcome
    deciding: Comparison | None = None
    p_holm: float | None = None
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """The results of one backbone: those of its grids by name, and of its untrained encoders."""

    grids: Mapping[str, GridResult]
    untrained: UntrainedResult

    def figures(self, place: Place, figure: FigureName) -> dict[int | None, float | None]:
        """A row's figure by seed (None: not trained); no entries if it was not measured, None where it is undefined."""
        scores: list[tuple[int | None, Scores]] = []
        if place.grid == UNTRAINED:
            scores = [(None, row.scores) for row in self.untrained.rows if row.name == place.row]
        elif place.grid in self.grids:
            rows = self.grids[place.grid].rows
            scores = [(run.seed, run.scores) for row in rows if row.name == place.row for run in row.runs]
        measured = [(seed, each) for seed, each in scores if figure != "sts7" or each.tasks]
        return {seed: _finite(getattr(each, figure)) for seed, each in measured}


def read_backbone(folder: Path) -> Backbone | None:
    """Read the results of a backbone; None if its untrained encoders have not been measured.

    Raises:
        UserError: If a file is not a result, or of another backbone or other evaluation sets than the others.
    """
    path = folder / f"{UNTRAINED}.json"
    if not path.is_file():
        return None
    untrained = read_untrained(path)
    grids = {}
    for file in sorted(folder.glob("*.json")):
        if file != path:
            grids[file.stem] = read_grid_result(file)
            _check_alike(file, grids[file.stem], untrained)
    return Backbone(grids, untrained)


def judge(findings: Sequence[Finding], backbone: Backbone) -> list[Verdict]:
    """Judge findings on a backbone, by the module's rule; in their order."""
    found: dict[int, tuple[Comparison, float | None]] = {}
    verdicts: dict[int, Verdict] = {}
    for number, finding in enumerate(findings):
        lacking = _lacking(finding, backbone)
        if lacking is not None:
            verdicts[number] = lacking
        else:
            found[number] = decide([_compare(above, below, finding.figure, backbone) for above, below in finding.pairs])
    tested = {number: p_value for number, (_, p_value) in found.items() if p_value is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    for number, (deciding, _) in found.items():
        p_holm = corrected.get(number)
        outcome: Outcome = "not significant"
        if p_holm is not None and p_holm < LEVEL:
            outcome = "holds" if deciding.value > 0 else "does not hold"
        verdicts[number] = Verdict(findings[number], outcome, deciding, p_holm)
    return [verdicts[number] for number in range(len(findings))]


def decide(comparisons: Sequence[Comparison]) -> tuple[Comparison, float | None]:
    """The comparison that decides a finding, and the finding's p-value; None if that of one of them is not known."""
    against = [each for each in comparisons if each.value < 0]
    if any(each.p_value is None for each in comparisons):
        return min(comparisons, key=lambda each: each.value), None
    if against:
        surest = min(against, key=_p_value)
        return surest, min(1.0, len(comparisons) * _p_value(surest))
    least_sure = max(comparisons, key=_p_value)
    return least_sure, _p_value(least_sure)


def _lacking(finding: Finding, backbone: Backbone) -> Verdict | None:
    """The verdict on a finding that cannot be judged, since rows were not run, or else a figure is undefined."""
    places = dict.fromkeys(place for pair in finding.pairs for place in pair)
    figures = {place: backbone.figures(place, finding.figure) for place in places}
    not_run = [place for place, by_seed in figures.items() if not by_seed]
    undefined = [place for place, by_seed in figures.items() if None in by_seed.values()]
    if not not_run and not undefined:
        return None
    known = {*backbone.grids, UNTRAINED}
    names = [f"{place.grid}: {place.row}" if place.grid in known else place.grid for place in not_run or undefined]
    return Verdict(finding, "not run" if not_run else "undefined", lacking=tuple(dict.fromkeys(names)))


def _compare(above: Place, below: Place, figure: FigureName, backbone: Backbone) -> Comparison:
    """Compare two rows whose figures are all defined."""
    if above.grid == below.grid == UNTRAINED:
        between = backbone.untrained.difference(above.row, below.row, figure)
        if between is not None:
            return Comparison(above, below, between.value, between.ci95, between.p_value)
    first, second = (backbone.figures(place, figure) for place in (above, below))
    shared: list[int | None] = [
        seed
        for seed in dict.fromkeys([*first, *second])
        if seed is not None and {seed, None} & first.keys() and {seed, None} & second.keys()
    ]
    each = np.array([_of(first, seed) - _of(second, seed) for seed in shared or [None]])
    if len(set(each)) == 1:
        return Comparison(above, below, float(each[0]), None, None)
    ci95, p_value = paired_t(each)
    return Comparison(above, below, float(each.mean()), ci95, p_value)


def _of(by_seed: Mapping[int | None, float | None], seed: int | None) -> float:
    """The figure of a seed, or of what has no seeds."""
    value = by_seed.get(seed, by_seed.get(None))
    assert value is not None
    return value


def _p_value(comparison: Comparison) -> float:
    assert comparison.p_value is not None
    return comparison.p_value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _check_alike(file: Path, grid: GridResult, untrained: UntrainedResult) -> None:
    """See that a grid began with the weights that were measured untrained, and was measured on the same sets.

    Raises:
        UserError: If not.
    """
    for scores in grid.untrained.values():
        if scores.weights_sha256 != untrained.weights_sha256:
            raise UserError(f"{file}: is of other weights than {UNTRAINED}.json beside it; run both on one backbone")
    sets = untrained.rows[0].scores.sets
    for scores in [*grid.untrained.values(), *(run.scores for row in grid.rows for run in row.runs)]:
        other = [name for name in scores.sets.keys() & sets.keys() if scores.sets[name] != sets[name]]
        if other:
            raise UserError(f"{file}: was measured on another {other[0]} than {UNTRAINED}.json beside it")
