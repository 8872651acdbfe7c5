"""A grid's result as a table beside the published figures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from eval.ablations.results import GridResult, RowResult, Spread
from eval.markdown import DASH, TITLES, joined, markdown_table
from eval.measured import AVERAGE
from eval.published import Published, Row, Table

_LEARNS_FROM = {
    "text": "text",
    "documents": "documents",
    "nli_pairs": "NLI pairs",
    "nli_triplets": "NLI triplets",
    "scored_pairs": "scored pairs",
}


def grid_table(result: GridResult, published: Published) -> str:
    """The table of a grid on one backbone in Markdown, and below it what it was made with.

    A published figure stands there as printed, with its set; the lines below the table say what it was measured on.
    """
    several_kinds = len({row.data for row in result.rows}) > 1
    with_average = any(row.sts7 for row in result.rows)
    header = ["row", *["learns from"] * several_kinds, "dev", "test", *["Avg."] * with_average]
    header += ["alignment", "uniformity", "difference", "published"]
    rows = {row.id: (table, row) for table, row in published.rows()}
    lines = []
    for pooling, scores in result.untrained.items():
        figures = [scores.dev, scores.test, *[scores.sts7] * with_average, scores.alignment, scores.uniformity]
        lines.append([f"untrained, {pooling}", *[DASH] * several_kinds, *map(_figure, figures), DASH])
        lines[-1].append(_published(rows, result.untrained_published.get(pooling)))
    for row in result.rows:
        spreads = [row.dev, row.test, *[row.sts7] * with_average]
        shapes = [_mean(row, "alignment"), _mean(row, "uniformity")]
        lines.append(
            [
                row.name.replace("|", "\\|"),
                *[_LEARNS_FROM[row.data]] * several_kinds,
                *map(_spread, spreads),
                *map(_figure, shapes),
                "reference" if row.name == result.reference else _difference(row),
                _published(rows, row.published),
            ]
        )
    table = markdown_table(header, lines, text_columns=1 + several_kinds)
    named = [*result.untrained_published.values(), *(row.published for row in result.rows)]
    titles = {rows[name][0].title for name in named if name}
    return joined([table, "\n".join([*_notes(result), *_sources(titles, published)])])


def _notes(result: GridResult) -> Iterator[str]:
    """How the table was made: one line each, as a list."""
    weights = next(iter(result.untrained.values())).weights_sha256
    seeds = ", ".join(map(str, result.seeds))
    seen = [f"{result.rows_seen:,} rows a run"] if result.rows_seen is not None else []
    budget = ", ".join([*seen, *(f"`{override}`" for override in result.budget)]) or "as in the recipes"
    seconds = sum(run.seconds for row in result.rows for run in row.runs)
    pooling = f", measured in pooling {result.pooling}" if result.pooling else ""
    model = f"{result.model} (weights {weights[:8]}){pooling}"
    yield f"- {model}; seeds {seeds}; budget: {budget}; {seconds / 60:.0f} minutes of training"
    files = [
        f"{_LEARNS_FROM[kind]} {name} {digest[:8]}"
        for kind, hashes in result.data.items()
        for name, digest in hashes.items()
    ]
    yield f"- STS-B text {result.sts_text}; trained on {', '.join(files)}"
    for row in result.rows:
        if row.skipped is not None:
            yield f"- {row.name}: skipped: {row.skipped}"
    yield from _overlaps(result)


def _overlaps(result: GridResult) -> Iterator[str]:
    """Which rows have seen sentences of the test, all seeds of a row the same ones."""
    rows: dict[str, list[str]] = {}
    for row in result.rows:
        overlap = row.runs[0].scores.overlap if row.runs else None
        if overlap is not None and overlap.sentences:
            shared = f"{overlap.sentences:,} of the {overlap.of_sentences:,} sentences of STS-B test"
            rows.setdefault(shared, []).append(row.name)
    for shared, names in rows.items():
        yield f"- {shared} are in the training text of: {', '.join(names)}"


def _sources(titles: Collection[str], published: Published) -> Iterator[str]:
    for table in published.tables.values():
        if table.title in titles:
            yield f"- Published: {table.title}. {table.about.strip()}"


def _mean(row: RowResult, name: str) -> float | None:
    values = [getattr(run.scores, name) for run in row.runs]
    return sum(values) / len(values) if values and None not in values else None


def _figure(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return DASH
    return f"{spread.mean:.2f}" + (f" ± {spread.std:.2f}" if spread.std is not None else "")


def _difference(row: RowResult) -> str:
    found = row.difference
    if found is None:
        return DASH
    value = f"**{found.value:+.2f}**" if found.significant else f"{found.value:+.2f}"
    return f"{value} [{found.ci95[0]:+.2f}, {found.ci95[1]:+.2f}]" if found.ci95 else value


def _published(rows: Mapping[str, tuple[Table, Row]], name: str | None) -> str:
    """The figure of a published row with its set and backbone: that of STS-B, or else the average."""
    if name is None:
        return DASH
    table, row = rows[name]
    column = "STSB" if "STSB" in row.figures else AVERAGE
    split = table.protocol.split if table.protocol and column != AVERAGE else ""
    what = ", ".join(filter(None, (f"{TITLES[column]} {split}".strip(), row.backbone)))
    decimals = 2 if table.decimals is None else table.decimals
    return f"{row.figures[column]:.{decimals}f} ({what})"
