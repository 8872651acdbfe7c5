"""Verdicts on findings, each by hand: what holds, what does not, what is not sure, and what cannot be judged."""

import numpy as np
import pytest
import scipy.stats

from eval.ablations.results import GridResult, RowResult, Run, Scores
from eval.ablations.statistics import holm
from eval.findings.claims import Finding, UntrainedEncoder, read_findings
from eval.findings.table import findings_table
from eval.findings.untrained import UntrainedDifference, UntrainedResult, UntrainedRow
from eval.findings.verdicts import Backbone, judge
from eval.published import read_published
from simcse_kit.data.sts import STS_TASKS

SETS = {"STSB test": "0"}


def scores(figure, *, tasks=True, weights="w", sets=SETS):
    return Scores(
        weights_sha256=weights,
        dev=figure,
        test=figure,
        tasks=dict.fromkeys(STS_TASKS, figure) if tasks else {},
        sts7=figure,
        alignment=figure,
        uniformity=figure,
        overlap=None,
        sets=sets,
    )


def grid_result(rows, **changes):
    """The result of a grid: figures by row, one a seed."""
    results = [
        RowResult.model_construct(
            name=name,
            runs=[
                Run.model_construct(seed=seed, scores=scores(figure, **changes))
                for seed, figure in enumerate(figures, start=1)
            ],
        )
        for name, figures in rows.items()
    ]
    return GridResult.model_construct(rows=results, untrained={})


def untrained_result(figures, differences=()):
    encoder = UntrainedEncoder(pooling="mean")
    rows = [
        UntrainedRow(name=name, encoder=encoder, scores=scores(figure), test_ci95=None, sts7_ci95=None)
        for name, figure in figures.items()
    ]
    return UntrainedResult.model_construct(
        model="some", weights_sha256="w", whitened_on={"pairs": "0" * 8}, pairs=4, rows=rows, differences=differences
    )


def finding(above, below, figure="test"):
    return Finding(claim="it is so", source="a paper", figure=figure, above=above, below=below)


HIGH, LOW = [70.0, 71.0, 72.0, 70.5, 71.5], [60.0, 61.5, 61.8, 60.1, 61.0]
UNSURE = [62.0, 55.0, 66.0, 58.0, 61.0]
BACKBONE = Backbone(
    {"g": grid_result({"high": HIGH, "low": LOW, "unsure": UNSURE, "gap": [1.0, None], "wild": [1.0, float("nan")]})},
    untrained_result(
        {"raw": 50.0, "cls": 20.0},
        [UntrainedDifference(above="raw", below="cls", figure="test", value=30.0, ci95=(25, 35), p_value=1e-9)],
    ),
)


def verdict(above, below, figure="test", backbone=BACKBONE):
    (found,) = judge([finding(above, below, figure)], backbone)
    return found


def test_a_sure_difference_holds_and_reversed_it_does_not():
    held, refuted = verdict(["g/high"], ["g/low"]), verdict(["g/low"], ["g/high"])
    theirs = scipy.stats.ttest_rel(HIGH, LOW)
    assert (held.outcome, refuted.outcome) == ("holds", "does not hold")
    assert held.p_holm == refuted.p_holm == pytest.approx(theirs.pvalue)
    assert held.deciding.value == pytest.approx(np.mean(HIGH) - np.mean(LOW)) == -refuted.deciding.value
    assert held.deciding.ci95 == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_a_difference_within_the_spread_of_seeds_is_not_significant_either_way():
    for pair in (["g/unsure"], ["g/low"]), (["g/low"], ["g/unsure"]):
        found = verdict(*pair)
        assert found.outcome == "not significant"
        assert found.p_holm == pytest.approx(scipy.stats.ttest_rel(UNSURE, LOW).pvalue) and found.p_holm > 0.05


def test_a_finding_is_as_sure_as_its_least_sure_comparison():
    lower = [figure - 0.2 + 0.3 * (-1) ** place for place, figure in enumerate(LOW)]
    backbone = Backbone({"g": grid_result({"high": HIGH, "low": LOW, "lower": lower})}, BACKBONE.untrained)
    found = verdict(["g/high", "g/low"], ["g/lower"], backbone=backbone)
    assert found.outcome == "not significant" and found.deciding.above == ("g", "low")
    assert found.p_holm == pytest.approx(scipy.stats.ttest_rel(LOW, lower).pvalue)
    assert verdict(["g/high"], ["g/low", "g/lower"], backbone=backbone).outcome == "holds"


def test_one_comparison_that_is_surely_the_other_way_refutes_a_finding_by_bonferroni():
    found = verdict(["g/low"], ["g/unsure", "g/high", "untrained/cls"])
    assert found.outcome == "does not hold" and found.deciding.below == ("g", "high")
    assert found.p_holm == pytest.approx(3 * scipy.stats.ttest_rel(HIGH, LOW).pvalue)


def test_an_untrained_encoder_is_a_constant_beside_seeds():
    found = verdict(["g/low"], ["untrained/raw"])
    assert (found.outcome, found.p_holm) == ("holds", pytest.approx(scipy.stats.ttest_1samp(LOW, 50.0).pvalue))
    assert verdict(["untrained/raw"], ["g/low"]).deciding.value == pytest.approx(50 - np.mean(LOW))


def test_two_untrained_encoders_are_told_apart_by_the_test_pairs():
    held, refuted = verdict(["untrained/raw"], ["untrained/cls"]), verdict(["untrained/cls"], ["untrained/raw"])
    assert (held.outcome, held.deciding.ci95, held.p_holm) == ("holds", (25, 35), 1e-9)
    assert (refuted.outcome, refuted.deciding.value, refuted.deciding.ci95) == ("does not hold", -30, (-35, -25))


def test_p_values_are_corrected_over_the_findings_that_were_tested():
    claims = [finding(["g/high"], ["g/low"]), finding(["g/unsure"], ["g/low"]), finding(["g/low"], ["untrained/raw"])]
    others = [finding(["g/high"], ["g/nowhere"]), finding(["g/high"], ["g/gap"])]
    alone = [judge([each], BACKBONE)[0].p_holm for each in claims]
    together = judge([*others, *claims], BACKBONE)
    assert [each.p_holm for each in together] == [None, None, *map(pytest.approx, holm(alone))]
    # What is sure alone is not sure among others.
    backbone = Backbone({"g": grid_result({"low": LOW, "lower": [59.0, 59.0, 60.0, 59.5, 60.5]})}, BACKBONE.untrained)
    sure, others = finding(["g/low"], ["g/lower"]), 4 * [finding(["g/lower"], ["g/low"])]
    (one,), many = judge([sure], backbone), judge([sure, *others], backbone)
    assert (one.outcome, many[0].outcome) == ("holds", "not significant")
    assert many[0].p_holm == pytest.approx(5 * one.p_holm)


@pytest.mark.parametrize(
    ("below", "outcome", "lacking"),
    [
        (["g/nowhere", "g/low"], "not run", ("g: nowhere",)),
        (["other/a", "other/b"], "not run", ("other",)),
        (["untrained/nowhere"], "not run", ("untrained: nowhere",)),
        (["g/gap"], "undefined", ("g: gap",)),
        (["g/low", "g/wild"], "undefined", ("g: wild",)),
        (["g/gap", "g/nowhere"], "not run", ("g: nowhere",)),
    ],
)
def test_what_is_not_there_or_undefined_is_said_and_not_judged(below, outcome, lacking):
    above = ["untrained/raw"] if below == ["other/a", "other/b"] else ["g/high"]
    found = verdict(above, below)
    assert (found.outcome, found.lacking, found.deciding, found.p_holm) == (outcome, lacking, None, None)


def test_an_average_that_was_not_asked_for_is_not_run():
    partial = Backbone({"g": grid_result({"high": HIGH, "low": LOW}, tasks=False)}, BACKBONE.untrained)
    assert verdict(["g/high"], ["g/low"], "sts7", partial).outcome == "not run"
    assert verdict(["g/high"], ["g/low"], "test", partial).outcome == "holds"


@pytest.mark.parametrize("figures", [[70.0], [70.0, 70.0, 70.0]])
def test_without_a_spread_over_seeds_nothing_is_significant(figures):
    backbone = Backbone({"g": grid_result({"high": figures, "low": [60.0] * len(figures)})}, BACKBONE.untrained)
    found = verdict(["g/high"], ["g/low"], backbone=backbone)
    assert (found.outcome, found.deciding.value, found.deciding.ci95) == ("not significant", 10.0, None)


def test_the_table_has_the_deciding_comparison_beside_the_published_one():
    claims = read_findings()
    rows = {"0.1": HIGH, "fixed 0.1": LOW, "0.0": [60.0, 61.5, 61.7, 60.2, 61.0]}
    table = findings_table(claims, Backbone({"dropout": grid_result(rows)}, untrained_result({})), read_published())
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| One dropout mask")]
    assert [line[3] for line in lines] == ["+38.90", "+27.50"]
    assert [line[-1] for line in lines] == ["**holds**", "not significant"]
    assert lines[0][4].startswith(f"{np.mean(HIGH) - np.mean(LOW):+.2f} [+")
    assert f"{len(claims.findings)} findings: holds 1, not significant 1, not run" in table
    assert "- not run (augmentation): Cropping the second view" in table
    assert "- not run (dropout: 0.01, dropout: 0.05, dropout: 0.15, dropout: 0.2, dropout: 0.5): A dropout" in table
