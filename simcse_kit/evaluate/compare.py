"""Figures beside figures: only those of one protocol are compared, and seeds only of one system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from simcse_kit.errors import UserError
from simcse_kit.evaluate.results import AverageEntry, ModelEntry, ResultEntry, ResultFile, SeedsEntry

_SAME_SYSTEM = ("pooling", "head", "normalize", "dtype", "max_length")


def check_comparable(first: ResultEntry, second: ResultEntry) -> None:
    """See that two figures of one task were measured by the same protocol.

    Raises:
        UserError: If split, metric, aggregation, text, classifier, data or number of pairs differ; each difference is
            named.
    """
    _refuse_differences(
        f"{first['task']}: figures of different protocol are not compared", _protocol(first), _protocol(second)
    )


def merge(files: Mapping[str, ResultFile]) -> ResultFile:
    """Put the models of several result files side by side.

    Args:
        files: Result files by name, at least one. Models are numbered anew, `m0`, `m1`, ... in their order.

    Returns:
        One result file, with the first one's versions; seeds and differences are left out, since a file has them for
        its own models alone.

    Raises:
        UserError: If a task was measured by different protocols, or the files have no task in common.
    """
    merged: ResultFile = {
        "models": [],
        "results": [],
        "averages": [],
        "seeds": [],
        "differences": [],
        "geometry": [],
        "versions": next(iter(files.values()))["versions"],
    }
    measured: dict[tuple[str, bool], ResultEntry] = {}
    for name, content in files.items():
        if measured and not {_figure(entry) for entry in content["results"]} & measured.keys():
            raise UserError(f"{name}: has no task in common with the files before it")
        for entry in content["results"]:
            check_comparable(measured.setdefault(_figure(entry), entry), entry)
        new = {model["id"]: f"m{len(merged['models']) + i}" for i, model in enumerate(content["models"])}
        merged["models"] += [{**model, "id": new[model["id"]]} for model in content["models"]]
        merged["results"] += [{**entry, "model": new[entry["model"]]} for entry in content["results"]]
        merged["averages"] += [{**average, "model": new[average["model"]]} for average in content["averages"]]
        merged["geometry"] += [{**entry, "model": new[entry["model"]]} for entry in content["geometry"]]
    return merged


def over_seeds(
    models: Sequence[ModelEntry], results: Iterable[ResultEntry], averages: Iterable[AverageEntry]
) -> list[SeedsEntry]:
    """Mean and standard deviation (n - 1 in the denominator) of every figure over models that differ in seed alone.

    A figure that is null for one of the models is left out.

    Raises:
        UserError: If there are fewer than two models, they are made or used in different ways, or two of them were
            trained with one seed.
    """
    check_one_system(models)
    figures: dict[tuple[str, str | None], list[ResultEntry | AverageEntry]] = {}
    for entry in results:
        figures.setdefault((entry["task"], entry["metric"]), []).append(entry)
    for average in averages:
        figures.setdefault((average["name"], None), []).append(average)
    return [
        _seeds_entry(task, metric, entries)
        for (task, metric), entries in figures.items()
        if len(entries) == len(models) and all(entry["value"] is not None for entry in entries)
    ]


def _figure(entry: ResultEntry) -> tuple[str, bool]:
    """Which figure an entry is: a task's, or MRPC's F1 beside its accuracy."""
    return entry["task"], entry["metric"] == "f1"


def _seeds_entry(task: str, metric: str | None, entries: Sequence[Any]) -> SeedsEntry:
    values = [entry["value"] for entry in entries]
    return {
        "models": [entry["model"] for entry in entries],
        "task": task,
        "split": entries[0].get("split"),
        "metric": metric,
        "aggregation": entries[0].get("aggregation"),
        "protocol": entries[0].get("protocol"),
        "mean": fmean(values),
        "std": stdev(values),
        "n": len(values),
    }


def check_seed_count(models: Sequence[Any]) -> None:
    """See that there are seeds to compare at all, which can be known before anything is opened.

    Raises:
        UserError: If there are fewer than two models.
    """
    if len(models) < 2:
        raise UserError("--as-seeds: seeds of a system are at least two models")


def check_one_system(models: Sequence[ModelEntry]) -> None:
    """See that models are seeds of one system, which can be known before anything is measured.

    Raises:
        UserError: As ``over_seeds``.
    """
    check_seed_count(models)
    systems = [_system(model) for model in models]
    for model, system in zip(models[1:], systems[1:], strict=True):
        what = f"--as-seeds: {models[0]['path']} and {model['path']} are not seeds of one system"
        _refuse_differences(what, systems[0], system)
    weights = [model["weights_sha256"] for model in models]
    if len(set(weights)) < len(weights):
        raise UserError("--as-seeds: two of the models have the same weights")
    seeds = [model["training"]["seed"] for model in models if model["training"]]
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        raise UserError(f"--as-seeds: several of the models were trained with seed {repeated[0]}")


def _system(model: ModelEntry) -> dict[str, Any]:
    """What seeds of one system have in common."""
    training = model["training"]
    made = {} if training is None else {"training data": sorted(training["data"].values())}
    return {key: model[key] for key in _SAME_SYSTEM} | made  # type: ignore[literal-required]


def _protocol(entry: ResultEntry) -> dict[str, Any]:
    own = {key: entry[key] for key in ("split", "metric", "aggregation", "n")}
    return own | dict(entry["protocol"])


def _refuse_differences(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    keys = dict.fromkeys([*first, *second])
    named = [
        f"{key} {_shown(first.get(key))} against {_shown(second.get(key))}"
        for key in keys
        if first.get(key) != second.get(key)
    ]
    if named:
        raise UserError(f"{what}: {', '.join(named)}")


def _shown(value: Any) -> str:
    """A value of a protocol; of a hash its beginning tells enough."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
