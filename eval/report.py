"""Write RESULTS.md and the README's tables of results and of speed: ``python -m eval.report``.

All come from ``published.yaml`` and the result files alone. A result file named by the id of a published row stands
beside that row, if it was measured by the row's protocol; all others are tables of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from eval.ablations.results import read_grid_result
from eval.ablations.statistics import RULE
from eval.ablations.table import grid_table
from eval.bench.table import readme_tables
from eval.findings.claims import UNTRAINED, read_findings
from eval.findings.table import findings_section
from eval.markdown import DASH, TITLES, joined, markdown_table
from eval.measured import AVERAGE, GEOMETRY, Figure, Protocol, Sheet, System, read_system, read_systems
from eval.published import Published, PublishedProtocol, Row, Table, comparable_sheet, read_published
from simcse_kit.cli.common import command_app, run
from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.evaluate.results import ModelEntry

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "eval" / "results", ROOT / "eval" / "results" / "ablations")
BEGIN = "<!-- results: written by `python -m eval.report` from eval/results/*.json -->"
END = "<!-- end of results -->"
BEGIN_SPEED = "<!-- speed: written by `python -m eval.report` from eval/results/bench/*.json -->"
END_SPEED = "<!-- end of speed -->"

app = command_app()

_ORDER = (*STS_TASKS, *TRANSFER_TASKS, "MRPC F1", AVERAGE)
_PAPERS = Protocol("spearman", "all", "disk", "test", None)

_HEADER = """# Results

Written by `python -m eval.report` from `published.yaml` and the result files; do not edit. `README.md` beside this file
says how each row is made and how a result is added.

Correlations and accuracies are x100. Ours are as the result files have them, to two decimals, with the 95% bootstrap
interval of a single model in brackets or, after ±, the standard deviation over seeds. A difference is ours less the
published figure, both as shown; *not run* stands where there is no result of ours. A figure whose protocol differs from
the row's is refused, never shown beside it. A footnote says where training text is known to share sentences with a
test; of models that were not trained here nothing is known. Footnotes to published rows name their known faults;
"derived" marks what no source says, but the figures do."""


class Footnotes:
    """Footnotes of one document, numbered as they are first referred to; a text that comes again keeps its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, texts: Iterable[str]) -> str:
        """Refer to the footnotes of these texts."""
        return "".join(f"[^{self._numbers.setdefault(text, len(self._numbers) + 1)}]" for text in texts)

    def lines(self) -> list[str]:
        """The footnotes themselves, in their order."""
        return [f"[^{number}]: {text}" for text, number in self._numbers.items()]


def results_document(published: Published, folders: Sequence[Path]) -> str:
    """RESULTS.md.

    Args:
        published: The papers' figures.
        folders: Where result files lie, and those of grids in ``ablations/BACKBONE/``; one of them may be missing.

    Raises:
        UserError: If a result file is not one, or stands under the id of a row with which it cannot be compared.
    """
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}
    rows = {row.id for table, row in published.rows() if table.protocol}
    notes = Footnotes()
    own = [system for name, path in files.items() if name not in rows for system in read_systems(path)]
    backbones = [path for folder in folders for path in sorted(folder.glob("ablations/*/")) if path.is_dir()]
    grids = [path for folder in backbones for path in sorted(folder.glob("*.json")) if path.stem != UNTRAINED]
    blocks = [_HEADER, *_measured_sections(own, notes)]
    blocks += findings_section(backbones, read_findings(), published)
    blocks += _ablation_sections(grids, published)
    for table in published.tables.values():
        blocks += _published_section(table, published, files, notes)
    sources = [f"- {key}: {text.strip()}" for key, text in published.sources.items()]
    return joined([*blocks, "## Sources", "\n".join(sources), *notes.lines()]) + "\n"


def readme_with_results(readme: str, results: Path) -> str:
    """The README with its tables written anew.

    Args:
        readme: Its text.
        results: Where result files lie, those of ``eval.bench`` in ``bench/``; of the others, the README has the
            systems with the papers' average.

    Raises:
        UserError: If a result file is none.
    """
    notes = Footnotes()
    systems = [system for path in sorted(results.glob("*.json")) for system in read_systems(path)]
    complete = [
        (system, sheet)
        for system in systems
        for sheet in system.sheets
        if sheet.protocol == _PAPERS and AVERAGE in sheet.figures
    ]
    table = _measured_table(complete, notes, with_intervals=False)
    title = "Spearman x100, aggregation `all`, text as SentEval prepares it (tokenised), test splits:"
    readme = _with_between(readme, BEGIN, END, joined([title, table, *notes.lines()]))
    return _with_between(readme, BEGIN_SPEED, END_SPEED, readme_tables(results / "bench"))


def _with_between(readme: str, begin: str, end: str, text: str) -> str:
    before, rest = readme.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def _measured_sections(systems: Sequence[System], notes: Footnotes) -> Iterator[str]:
    """A table for each protocol by which our own systems were measured, and one of their geometry."""
    by_protocol: dict[Protocol, list[tuple[System, Sheet]]] = {}
    for system in systems:
        for sheet in system.sheets:
            by_protocol.setdefault(sheet.protocol, []).append((system, sheet))
    yield "## Measured here"
    for protocol, measured in by_protocol.items():
        yield f"### {_protocol_line(protocol).capitalize()}"
        yield _measured_table(measured, notes, with_intervals=True)
        yield "\n".join(_provenance(system, sheet) for system, sheet in measured)
    yield from _geometry_section(systems)


def _measured_table(measured: Sequence[tuple[System, Sheet]], notes: Footnotes, *, with_intervals: bool) -> str:
    present = dict.fromkeys(column for _, sheet in measured for column in sheet.figures)
    columns = [column for column in _ORDER if column in present]
    columns += [column for column in present if column not in _ORDER]
    rows = [
        [
            system.name,
            system.models[0]["pooling"],
            *(_figure_cell(sheet.figures.get(column), notes, with_interval=with_intervals) for column in columns),
        ]
        for system, sheet in measured
    ]
    return markdown_table(
        ["model", "pooling", *(TITLES.get(column, column) for column in columns)], rows, text_columns=2
    )


def _geometry_section(systems: Sequence[System]) -> Iterator[str]:
    rows = [
        [
            system.name,
            f"{TITLES.get(entry['task'], entry['task'])} {entry['split']}, {entry['text']}",
            *(DASH if entry[key] is None else f"{entry[key]:.2f}" for key in GEOMETRY),
        ]
        for system in systems
        for entry in system.geometry
    ]
    if rows:
        yield "### Geometry"
        yield (
            "Of unit vectors. Alignment: mean squared distance of pairs with gold above 4; uniformity: logarithm of "
            "the mean of exp(-2 d²) over two sentences, lower being better for both; anisotropy: mean cosine of two "
            "sentences; effective rank: number of dimensions over which the sentences spread."
        )
        yield markdown_table(["model", "text", *(key.replace("_", " ") for key in GEOMETRY)], rows, text_columns=2)


def _ablation_sections(files: Sequence[Path], published: Published) -> Iterator[str]:
    """A table for each grid and backbone."""
    if files:
        yield "## Ablations here"
        yield (
            "Grids of `python -m eval.ablations`: Spearman x100 on STS-B, mean ± standard deviation over seeds. Dev "
            f"chose the best model of each run, as in the papers' ablations. {RULE}"
        )
    for path in files:
        result = read_grid_result(path)
        yield f"### {result.title}, from {result.model}"
        yield result.about.strip()
        yield grid_table(result, published)


def _published_section(
    table: Table, published: Published, files: Mapping[str, Path], notes: Footnotes
) -> Iterator[str]:
    """A published table, with our figures and the differences below each row that has been run."""
    yield f"## {table.title}"
    with_sources = any(row.source for row in table.rows)
    yield table.about + ("" if with_sources else f" Source: {table.source}.")
    labels = [label for label in ("variant", "backbone") if any(getattr(row, label) for row in table.rows)]
    header = ["system", *labels, *(TITLES.get(column, column) for column in table.columns)]
    header += ["source"] * with_sources + ["ours"] * (table.protocol is not None)
    lines, provenance = [], []
    for row in table.rows:
        marks = notes.mark(published.notes[note] for note in row.notes)
        line = [row.system.replace("|", "\\|") + marks, *(getattr(row, label) or "" for label in labels)]
        line += [_published_cell(row, column, table.decimals) for column in table.columns]
        if with_sources:
            line.append(" / ".join(filter(None, (row.source, row.average_source))))
        lines.append(line)
        if table.protocol is None:
            continue
        if row.id not in files:
            line.append("not run")
            continue
        line.append(f"`{row.id}`")
        system = read_system(files[row.id])
        sheet = comparable_sheet(row, table.protocol, system)
        ours = [_figure_cell(sheet.figures.get(column), notes, with_interval=False) for column in table.columns]
        differences = [_difference_cell(row, sheet, column) for column in table.columns]
        for name, cells in (("- ours", ours), ("- difference", differences)):
            lines.append([name, *[""] * len(labels), *cells, *[""] * (1 + with_sources)])
        provenance.append(_provenance(system, sheet))
    if table.protocol:
        yield f"Protocol: {_protocol_line(table.protocol)}{_counts(table.protocol)}."
    yield markdown_table(header, lines, text_columns=1 + len(labels))
    yield "\n".join(provenance)


def _published_cell(row: Row, column: str, decimals: int | None) -> str:
    if column not in row.figures:
        return DASH
    value = row.figures[column]
    shown = str(value) if decimals is None or isinstance(value, int) else f"{value:.{decimals}f}"
    return f"{shown} ± {row.std[column]:.{decimals}f}" if column in row.std else shown


def _figure_cell(figure: Figure | None, notes: Footnotes, *, with_interval: bool) -> str:
    """A figure of ours, with footnotes for why it is undefined and for training text that it shares."""
    if figure is None:
        return DASH
    if figure.value is None:
        return f"{DASH}{notes.mark([f'Undefined: {figure.reason}.'])}"
    shown = f"{figure.value:.2f}"
    if figure.std is not None:
        shown += f" ± {figure.std:.2f}"
    if figure.interval and with_interval:
        shown += f" [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]"
    return shown + notes.mark(_overlap_note(figure))


def _overlap_note(figure: Figure) -> Iterator[str]:
    """What the figure's system has seen of the task in training; nothing if it has seen none of it."""
    seen = figure.overlap
    if seen and seen["sentences"]:
        yield (
            f"{seen['sentences']:,} of the {seen['of_sentences']:,} sentences of this test are in the training text "
            f"({seen['train_rows']:,} of its {seen['of_rows']:,} rows)."
        )


def _difference_cell(row: Row, sheet: Sheet, column: str) -> str:
    figure = sheet.figures.get(column)
    if figure is None or figure.value is None or column not in row.figures:
        return DASH
    return f"{round(figure.value, 2) - row.figures[column]:+.2f}"


def _protocol_line(protocol: Protocol | PublishedProtocol) -> str:
    parts = [
        protocol.metric.replace("_", " "),
        f"aggregation `{protocol.aggregation}`" if protocol.aggregation else "",
        f"text {protocol.text}" if protocol.text else "",
        f"{protocol.split} split",
        f"classifier {protocol.classifier}" if protocol.classifier else "",
    ]
    return ", ".join(filter(None, parts))


def _counts(protocol: PublishedProtocol) -> str:
    counts = [f"{TITLES.get(task, task)} {n:,}" for task, n in protocol.n.items() if n is not None]
    return f"; pairs or examples: {', '.join(counts)}" if counts else ""


def _provenance(system: System, sheet: Sheet) -> str:
    """What made the figures: the models' own settings and weights, their seeds, and the data's hashes, shortened."""
    model = system.models[0]
    data = {task: figure.data for task, figure in sheet.figures.items() if figure.data and not task.endswith(" F1")}
    hashes = ", ".join(f"{TITLES.get(task, task)} {digest[:8]}" for task, digest in data.items())
    weights = ", ".join(model["weights_sha256"][:8] for model in system.models)
    tokens = f", at most {model['max_length']} tokens" if model["max_length"] else ""
    return (
        f"- {system.name} (`{system.file.parent.name}/{system.file.name}`): pooling {model['pooling']}, head "
        f"{model['head']}, {model['dtype']}{tokens}; {_training(system.models)}; weights {weights}; data {hashes}"
    )


def _training(models: Sequence[ModelEntry]) -> str:
    trained = [training for model in models if (training := model.get("training"))]
    seeds = f"seeds {', '.join(str(training['seed']) for training in trained)}" if trained else "not trained here"
    return seeds + (", **chosen on a test split**" if any(entry["selected_on_test"] for entry in trained) else "")


@app.command()
def report() -> None:
    """Write RESULTS.md and the tables of the README."""
    (ROOT / "eval" / "RESULTS.md").write_text(results_document(read_published(), FOLDERS), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with_results(readme.read_text(encoding="utf-8"), FOLDERS[0]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(app))
