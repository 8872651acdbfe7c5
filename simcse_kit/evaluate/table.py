"""A result file as the papers print it: a row a model, a column a task, two decimals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.evaluate.results import ModelEntry, ResultEntry, ResultFile, TrainingEntry

_TITLES = {"STSB": "STS-B", "SICKR": "SICK-R", "SST2": "SST-2", "sts7": "Avg.", "transfer7": "Avg."}
_AGGREGATIONS = {
    "all": "all (pairs of all subsets together)",
    "mean": "mean over subsets",
    "wmean": "mean over subsets weighted by pairs",
}
_TEXTS = {"disk": "as on disk (tokenised)", "raw": "raw"}

Column = tuple[str, str | None]
"""A task and a metric, or an average and None."""


def results_table(results: ResultFile) -> Group:
    """Lay out a result file's figures; the lines below a table name its protocol and explain each mark."""
    parts: list[RenderableType] = []
    for average, is_transfer in (("sts7", False), ("transfer7", True)):
        entries = [entry for entry in results["results"] if (entry["task"] in TRANSFER_TASKS) == is_transfer]
        if entries:
            parts.append(_figures(results, entries, average))
    if results["differences"]:
        parts.append(_differences(results))
    if results["geometry"]:
        parts.append(_geometry(results))
    return Group(*parts)


def _figures(results: ResultFile, entries: Sequence[ResultEntry], average: str) -> Group:
    """A table of one kind of tasks: their figures, the average, the row over seeds."""
    columns: list[Column] = list(dict.fromkeys((entry["task"], entry["metric"]) for entry in entries))
    averages = {entry["model"]: entry["value"] for entry in results["averages"] if entry["name"] == average}
    if averages:
        columns.append((average, None))
    notes = _Notes()
    table = _table("Model", *(_title(column) for column in columns))
    for model in results["models"]:
        own = {(entry["task"], entry["metric"]): entry for entry in entries if entry["model"] == model["id"]}
        if not own:
            continue
        cells = [_cell(own[column], model, notes) if column in own else "" for column in columns if column[1]]
        if averages:
            cells.append(f"{averages[model['id']]:.2f}" if model["id"] in averages else "-")
        table.add_row(Text(_label(model)), *map(Text, cells))
    seeds = {(entry["task"], entry["metric"]): entry for entry in results["seeds"]}
    if seeds:
        found = [seeds.get(column) for column in columns]
        spread = [f"{entry['mean']:.2f}\n±{entry['std']:.2f}" if entry else "-" for entry in found]
        table.add_row(Text(f"mean ± standard deviation of {len(results['models'])} seeds"), *map(Text, spread))
    return _with_notes(table, [_protocol(entries), *notes.lines()])


def _differences(results: ResultFile) -> Group:
    """How much each later model is above the first."""
    entries = results["differences"]
    columns = list(dict.fromkeys(entry["task"] for entry in entries))
    first, *others = results["models"]
    table = _table(f"Above {_label(first)}", *(_TITLES.get(task, task) for task in columns))
    for model in others:
        own = {entry["task"]: entry for entry in entries if entry["model"] == model["id"]}
        cells = [_difference(own[task]["value"], own[task]["ci95"]) if task in own else "-" for task in columns]
        table.add_row(Text(_label(model)), *map(Text, cells))
    return _with_notes(table, ["in brackets the 95% interval of the paired bootstrap"])


def _geometry(results: ResultFile) -> Group:
    keys = {
        "alignment": "alignment",
        "uniformity": "uniformity",
        "anisotropy": "mean cosine",
        "effective_rank": "effective rank",
    }
    models = {model["id"]: model for model in results["models"]}
    sets = list(dict.fromkeys((entry["task"], entry["split"], entry["text"]) for entry in results["geometry"]))
    table = _table("Model", *keys.values())
    for entry in results["geometry"]:
        cells = ["-" if entry[key] is None else f"{entry[key]:.3f}" for key in keys]
        table.add_row(Text(_label(models[entry["model"]])), *map(Text, cells))
    named = ", ".join(f"{_TITLES[task]} {split}, text {_TEXTS[text]}" for task, split, text in sets)
    return _with_notes(table, [f"geometry of unit vectors on {named}; alignment: pairs of gold score above 4"])


def _cell(entry: ResultEntry, model: ModelEntry, notes: _Notes) -> str:
    task = _TITLES.get(entry["task"], entry["task"])
    if entry["value"] is None:
        return "-" + notes.mark(f"{task} of {model['path']}: {entry['reason']}")
    figure = f"{entry['value']:.2f}"
    seen = entry["overlap"]
    if seen and seen["train_rows"]:
        figure += notes.mark(
            f"{model['path']} was trained on text of {task}: {seen['sentences']:,} of its {seen['of_sentences']:,} "
            f"sentences are in {seen['train_rows']:,} of {seen['of_rows']:,} training rows"
        )
    training = model["training"]
    if training and training["best"] and _chose(training, entry):
        figure += notes.mark(f"{model['path']} was chosen on {task} {entry['split']}, so this is no test of it")
    interval = entry["ci95"]
    return figure if interval is None else f"{figure}\n±{(interval[1] - interval[0]) / 2:.2f}"


def _chose(training: TrainingEntry, entry: ResultEntry) -> bool:
    """Whether a model's best state was chosen on what a figure is of: the same data, or another text of it."""
    best = training["best"] or {}
    same_set = (best.get("task"), best.get("split")) == (entry["task"], entry["split"])
    return same_set or entry["protocol"]["data_sha256"] in training.get("chosen_on", [])


class _Notes:
    """Footnotes, numbered in the order of their first mark."""

    def __init__(self) -> None:
        self._notes: dict[str, int] = {}

    def mark(self, note: str) -> str:
        """The mark of a note."""
        return f"[{self._notes.setdefault(note, len(self._notes) + 1)}]"

    def lines(self) -> list[str]:
        """The notes with their marks."""
        return [f"[{number}] {note}" for note, number in self._notes.items()]


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.HORIZONTALS)
    table.add_column(Text(first), overflow="fold")
    for title in others:
        table.add_column(Text(title), justify="right", no_wrap=True)
    return table


def _with_notes(table: Table, notes: Iterable[str]) -> Group:
    return Group(table, *(Text(f" {note}") for note in notes))


def _title(column: Column) -> str:
    task, metric = column
    return f"{_TITLES.get(task, task)} F1" if metric == "f1" else _TITLES.get(task, task)


def _label(model: ModelEntry) -> str:
    head = "" if model["head"] == "none" else f" + {model['head']}"
    return f"{model['path']} ({model['pooling']}{head})"


def _difference(value: float, interval: tuple[float, float]) -> str:
    return f"{value:+.2f}\n[{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _text(entry: ResultEntry) -> str:
    """What a figure's text is; how a file of the user's own was prepared is not known."""
    text = entry["protocol"]["text"]
    known = entry["task"] in STS_TASKS or entry["task"] in TRANSFER_TASKS
    return _TEXTS.get(text, text) if known else "as in the file"


def _protocol(entries: Sequence[ResultEntry]) -> str:
    """The protocol of all figures in one line; a part in which they differ lists its values."""
    parts = {
        "aggregation": [_AGGREGATIONS[entry["aggregation"]] for entry in entries if entry["aggregation"]],
        "classifier": [classifier for entry in entries if (classifier := entry["protocol"]["classifier"])],
        "split": [entry["split"] for entry in entries],
        "text": [_text(entry) for entry in entries],
    }
    metrics = " and ".join(dict.fromkeys(entry["metric"].capitalize() for entry in entries))
    named = [f"{name}: {' / '.join(dict.fromkeys(values))}" for name, values in parts.items() if values]
    interval = ["±: half the 95% bootstrap interval"] if any(entry["ci95"] for entry in entries) else []
    return "; ".join([f"{metrics} x100", *named, *interval])
