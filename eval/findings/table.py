"""Findings beside the published figures, and what the backbone scores without training, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from eval.findings.claims import Findings, published_difference
from eval.findings.untrained import Interval, UntrainedResult
from eval.findings.verdicts import RULE, Backbone, Outcome, Verdict, judge, read_backbone
from eval.markdown import DASH, joined, markdown_table
from eval.measured import AVERAGE
from eval.published import Published

_FIGURES = {"test": "STS-B test", "sts7": "Avg.", "alignment": "alignment", "uniformity": "uniformity"}


def findings_section(folders: Sequence[Path], findings: Findings, published: Published) -> Iterator[str]:
    """The section of RESULTS.md: every backbone whose folder has results of ``python -m eval.findings``."""
    yield "## Findings of the papers"
    found = [(folder, backbone) for folder in folders if (backbone := read_backbone(folder))]
    if not found:
        yield (
            f"Not run: the {len(findings.findings)} findings of `findings/findings.yaml` need a backbone that is "
            "pre-trained and not yet contrastively trained (`python -m eval.findings`, see `README.md`)."
        )
        return
    yield (
        "What the papers found, and whether it holds on a backbone of ours, by `python -m eval.findings`. Differences "
        f"are x100, but for alignment and uniformity, of which lower is better. {RULE}"
    )
    for folder, backbone in found:
        yield f"### On {folder.name}"
        yield findings_table(findings, backbone, published)
        yield f"### {folder.name} without training"
        yield untrained_table(backbone.untrained, published)


def findings_table(findings: Findings, backbone: Backbone, published: Published) -> str:
    """All findings on one backbone, with the published and our difference of the comparison that decides each."""
    verdicts = judge(findings.findings, backbone)
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = ", ".join(f"{each} {outcomes.count(each)}" for each in get_args(Outcome) if each in outcomes)
    header = ["finding", "source", "difference", "published", "ours", "p", "verdict"]
    judged = [_judged(verdict, findings, published) for verdict in verdicts if verdict.deciding]
    others = [
        f"- {verdict.outcome} ({', '.join(verdict.lacking)}): {verdict.finding.claim}"
        for verdict in verdicts
        if not verdict.deciding
    ]
    table = markdown_table(header, judged, text_columns=3) if judged else ""
    return joined([f"{len(verdicts)} findings: {counts}.", table, "\n".join(others)])


def _judged(verdict: Verdict, findings: Findings, published: Published) -> list[str]:
    finding, decided = verdict.finding, verdict.deciding
    assert decided is not None
    theirs = published_difference(findings, published, decided.above, decided.below, finding.figure)
    many = f" (of {len(finding.pairs)})" if len(finding.pairs) > 1 else ""
    cells = [
        finding.claim,
        finding.source,
        f"{_FIGURES[finding.figure]}: {decided.above.row} - {decided.below.row}{many}",
        DASH if theirs is None else f"{theirs:+.2f}",
        f"{decided.value:+.2f}" + _interval(decided.ci95, "+.2f"),
        DASH if verdict.p_holm is None else f"{verdict.p_holm:.2g}",
        f"**{verdict.outcome}**" if verdict.outcome in ("holds", "does not hold") else verdict.outcome,
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def untrained_table(result: UntrainedResult, published: Published) -> str:
    """The encoders that are not trained, with their intervals, beside the published averages."""
    averages = {row.id: row.figures.get(AVERAGE) for _, row in published.rows()}
    rows = []
    for row in result.rows:
        theirs = averages[row.encoder.published] if row.encoder.published else None
        scores = row.scores
        figures = [(scores.sts7, row.sts7_ci95), (scores.dev, None), (scores.test, row.test_ci95)]
        figures += [(scores.alignment, None), (scores.uniformity, None), (theirs, None)]
        rows.append([row.name, *(_figure(value, ci95) for value, ci95 in figures)])
    header = ["encoder", "Avg.", "STS-B dev", "STS-B test", "alignment", "uniformity", "published Avg."]
    files = ", ".join(f"{name} {digest[:8]}" for name, digest in result.whitened_on.items())
    notes = [
        f"- {result.model} (weights {result.weights_sha256[:8]}); whitened on the sentences of {result.pairs:,} pairs "
        f"of {files}",
        "- In brackets 95% intervals of the bootstrap over test pairs. Published: BERT-base.",
    ]
    return joined([markdown_table(header, rows, text_columns=1), "\n".join(notes)])


def _figure(value: float | None, ci95: Interval | None) -> str:
    return DASH if value is None else f"{value:.2f}" + _interval(ci95, ".2f")


def _interval(ci95: Interval | None, form: str) -> str:
    return f" [{ci95[0]:{form}}, {ci95[1]:{form}}]" if ci95 else ""
