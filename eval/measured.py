"""Our result files, read as systems: a model, or several seeds of one, with figures sorted by protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from simcse_kit.errors import UserError
from simcse_kit.evaluate.results import AVERAGES, ModelEntry, OverlapEntry, ResultEntry, ResultFile, read_results

AVERAGE = "Avg"
"""The name under which an average stands among the figures."""

GEOMETRY = ("alignment", "uniformity", "anisotropy", "effective_rank")
"""What is shown of the geometry of a system's vectors; of several seeds the means."""


class Protocol(NamedTuple):
    """How figures were measured; two of different protocol are not comparable."""

    metric: str
    aggregation: str | None
    text: str
    split: str
    classifier: str | None


@dataclass(frozen=True)
class Figure:
    """A figure of a system.

    Attributes:
        value: x100, the mean where there are several seeds; None if it is undefined.
        std: Standard deviation over seeds; None for a single model.
        interval: The 95% interval of a single model, if there is one.
        reason: Why `value` is None.
        n: Number of pairs or test examples; None for an average.
        data: Hash of the evaluation data; None for an average.
        overlap: What the system's training text shares with the task, if anything is known of it.
    """

    value: float | None
    std: float | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None
    n: int | None = None
    data: str | None = None
    overlap: OverlapEntry | None = None


@dataclass(frozen=True)
class Sheet:
    """A system's figures of one protocol: by task, by ``MRPC F1``, and their average if the file has it."""

    protocol: Protocol
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A model, or several that differ in their seed, as a result file reports them."""

    name: str
    file: Path
    models: list[ModelEntry]
    sheets: list[Sheet]
    geometry: list[dict[str, Any]]


def read_systems(path: Path) -> list[System]:
    """Read a result file's systems: the seeds that it has averaged are one, and every other model is one."""
    content = read_results(path)
    models = {model["id"]: model for model in content["models"]}
    seeds = list(dict.fromkeys(tuple(entry["models"]) for entry in content.get("seeds", [])))
    averaged = {model for group in seeds for model in group}
    groups = [*seeds, *((model,) for model in models if model not in averaged)]
    return [
        System(
            name=path.stem if len(groups) == 1 else Path(models[group[0]]["path"]).name,
            file=path,
            models=[models[model] for model in group],
            sheets=_sheets(content, group),
            geometry=_mean_geometry(content.get("geometry", []), group),
        )
        for group in groups
    ]


def read_system(path: Path) -> System:
    """Read a result file that stands for one system.

    Raises:
        UserError: If it holds several.
    """
    systems = read_systems(path)
    if len(systems) != 1:
        raise UserError(
            f"{path}: holds {len(systems)} models; a published row is compared with one, or with --as-seeds"
        )
    return systems[0]


def _mean_geometry(entries: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """Entries of each text, their figures averaged over models; undefined if one of them is."""
    texts: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["model"] in models:
            texts.setdefault((entry["task"], entry["split"], entry["text"]), []).append(entry)
    return [
        {**dict(zip(("task", "split", "text"), text, strict=True)), **{key: _mean(key, own) for key in GEOMETRY}}
        for text, own in texts.items()
    ]


def _mean(key: str, entries: Sequence[Mapping[str, Any]]) -> float | None:
    values = [entry[key] for entry in entries]
    return None if None in values else fmean(values)


def _sheets(content: ResultFile, models: Sequence[str]) -> list[Sheet]:
    over_seeds = {
        (entry["task"], entry["metric"]): Figure(entry["mean"], entry["std"])
        for entry in content.get("seeds", [])
        if tuple(entry["models"]) == models
    }
    sheets: dict[Protocol, Sheet] = {}
    for entry in content["results"]:
        if entry["model"] == models[0]:
            protocol = _protocol(entry)
            sheet = sheets.setdefault(protocol, Sheet(protocol))
            sheet.figures[_column(entry)] = _figure(entry, over_seeds if len(models) > 1 else None)
    for sheet in sheets.values():
        for name, average in _averages(content, models, sheet):
            sheet.figures[AVERAGE] = over_seeds.get((name, None), average)
    return list(sheets.values())


def _protocol(entry: ResultEntry) -> Protocol:
    """F1 belongs to the accuracies of its protocol, as a column more."""
    metric = "accuracy" if entry["metric"] == "f1" else entry["metric"]
    own = entry["protocol"]
    return Protocol(metric, entry["aggregation"], own["text"], entry["split"], own["classifier"])


def _column(entry: ResultEntry) -> str:
    return f"{entry['task']} F1" if entry["metric"] == "f1" else entry["task"]


def _figure(entry: ResultEntry, over_seeds: Mapping[tuple[str, str | None], Figure] | None) -> Figure:
    single = Figure(
        entry["value"],
        interval=entry["ci95"],
        reason=entry["reason"],
        n=entry["n"],
        data=entry["protocol"]["data_sha256"],
        overlap=entry.get("overlap"),
    )
    if over_seeds is None:
        return single
    mean = over_seeds.get((entry["task"], entry["metric"]), Figure(None, reason="undefined for one of the seeds"))
    return replace(single, value=mean.value, std=mean.std, interval=None, reason=mean.reason)


def _averages(content: ResultFile, models: Sequence[str], sheet: Sheet) -> Iterator[tuple[str, Figure]]:
    """The file's averages of exactly these figures; a file names the tasks of an average, but not its protocol."""
    entries = {
        entry["task"]: entry["value"]
        for entry in content["results"]
        if entry["model"] == models[0] and _protocol(entry) == sheet.protocol and entry["metric"] != "f1"
    }
    for average in content["averages"]:
        values = [value for task in AVERAGES[average["name"]] if (value := entries.get(task)) is not None]
        whole = average["model"] == models[0] and len(values) == len(AVERAGES[average["name"]])
        if whole and isclose(average["value"], fmean(round(value, 2) for value in values), abs_tol=1e-6):
            yield average["name"], Figure(average["value"])
