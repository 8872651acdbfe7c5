"""A result file as the papers print it: a row a model, a column a task, two decimals."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simcse_kit.evaluate.results import ModelEntry, ResultFile

_TITLES = {"STSB": "STS-B", "SICKR": "SICK-R"}
_AGGREGATIONS = {
    "all": "all (pairs of all subsets together)",
    "mean": "mean over subsets",
    "wmean": "mean over subsets weighted by pairs",
}
_TEXTS = {"disk": "as on disk (tokenised)", "raw": "raw"}


def results_table(results: ResultFile) -> Group:
    """Lay out a result file's figures; the lines below the table name their protocol and explain each dash."""
    tasks = list(dict.fromkeys(entry["task"] for entry in results["results"]))
    entries = {(entry["model"], entry["task"]): entry for entry in results["results"]}
    averages = {average["model"]: average["value"] for average in results["averages"]}
    footnotes: list[str] = []

    table = Table(box=box.HORIZONTALS)
    table.add_column("Model", overflow="fold")
    for title in (*(_TITLES.get(task, task) for task in tasks), *(["Avg."] if averages else [])):
        table.add_column(Text(title), justify="right", no_wrap=True)
    for model in results["models"]:
        cells = []
        for task in tasks:
            entry = entries[model["id"], task]
            if entry["value"] is None:
                footnotes.append(f"{_TITLES.get(task, task)} of {model['path']}: {entry['reason']}")
                cells.append(f"-[{len(footnotes)}]")
            else:
                cells.append(f"{entry['value']:.2f}")
        if averages:
            cells.append(f"{averages[model['id']]:.2f}" if model["id"] in averages else "-")
        table.add_row(Text(_label(model)), *map(Text, cells))
    notes = [_protocol(results), *(f"[{i}] {footnote}" for i, footnote in enumerate(footnotes, start=1))]
    return Group(table, *(Text(f" {note}") for note in notes))


def _label(model: ModelEntry) -> str:
    head = "" if model["head"] == "none" else f" + {model['head']}"
    return f"{model['path']} ({model['pooling']}{head})"


def _protocol(results: ResultFile) -> str:
    """The protocol of all figures in one line; a part in which they differ lists its values."""
    entries = results["results"]
    parts = {
        "aggregation": [_AGGREGATIONS[entry["aggregation"]] for entry in entries],
        "split": [entry["split"] for entry in entries],
        "text": [_TEXTS.get(entry["protocol"]["text"], entry["protocol"]["text"]) for entry in entries],
    }
    metrics = " and ".join(dict.fromkeys(entry["metric"].capitalize() for entry in entries))
    named = [f"{name}: {' / '.join(dict.fromkeys(values))}" for name, values in parts.items()]
    return "; ".join([f"{metrics} x100", *named])
