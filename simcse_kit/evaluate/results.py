"""The result file of `simcse-eval --json`: figures together with the protocol and the model they belong to.

The TypedDicts are the file's shape, key for key, and its only definition. Correlations and accuracies are x100 and
unrounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired, TypedDict, cast

from simcse_kit import __version__
from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.errors import UserError
from simcse_kit.output import replacing

RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")

AVERAGES: Mapping[str, Sequence[str]] = {"sts7": STS_TASKS, "transfer7": TRANSFER_TASKS}
"""The papers' averages, of correlations and of accuracies, and the tasks of each."""


_NEEDED = {
    "models": frozenset({"id", "path", "weights_sha256", "pooling", "head", "normalize", "dtype", "max_length"}),
    "results": frozenset(
        {"model", "task", "split", "metric", "aggregation", "protocol", "value", "reason", "n", "ci95", "subsets"}
    ),
    "averages": frozenset({"model", "name", "value"}),
}


class TrainingEntry(TypedDict):
    """What run.json says about where a model comes from; `chosen_on` are hashes of the data that chose it."""

    seed: int
    commit: str | None
    data: dict[str, str]
    best: dict[str, Any] | None
    chosen_on: NotRequired[list[str]]
    selected_on_test: bool


class ModelEntry(TypedDict):
    """A model, in the state in which it was measured; `training` is null for one that no recipe of ours trained."""

    id: str
    path: str
    weights_sha256: str
    pooling: str
    head: str
    normalize: bool
    dtype: str
    max_length: int | None
    training: TrainingEntry | None


class Protocol(TypedDict):
    """What else decides a figure: the text variant, the classifier (transfer tasks only) and the data's hash."""

    text: str
    classifier: str | None
    data_sha256: str


class SubsetEntry(TypedDict):
    """A subset's figure; `reason` is there only where `value` is null."""

    value: float | None
    n: int
    reason: NotRequired[str]


class OverlapEntry(TypedDict):
    """How much of the task's text the model was trained on (see simcse_kit.data.overlap)."""

    train_rows: int
    of_rows: int
    sentences: int
    of_sentences: int


class ResultEntry(TypedDict):
    """One figure of one model.

    `reason` says why `value` is null; `aggregation` and `ci95` are null for accuracies; `overlap` is null where the
    model does not say what text it was trained on.
    """

    model: str
    task: str
    split: str
    metric: str
    aggregation: str | None
    protocol: Protocol
    value: float | None
    reason: str | None
    n: int
    ci95: tuple[float, float] | None
    subsets: dict[str, SubsetEntry]
    overlap: OverlapEntry | None


class AverageEntry(TypedDict):
    """A model's average over a named set of tasks."""

    model: str
    name: str
    value: float


class SeedsEntry(TypedDict):
    """A figure over several seeds of one system; `task` is an average's name where the rest is null."""

    models: list[str]
    task: str
    split: str | None
    metric: str | None
    aggregation: str | None
    protocol: Protocol | None
    mean: float
    std: float
    n: int


class DifferenceEntry(TypedDict):
    """How much a model is above the first one, with the interval of the paired bootstrap."""

    model: str
    baseline: str
    task: str
    split: str
    metric: str
    aggregation: str | None
    value: float
    ci95: tuple[float, float]
    p_value: float


class ResultFile(TypedDict):
    """The whole file; `geometry` holds a model's and task's figures as simcse_kit.evaluate.geometry names them."""

    models: list[ModelEntry]
    results: list[ResultEntry]
    averages: list[AverageEntry]
    seeds: list[SeedsEntry]
    differences: list[DifferenceEntry]
    geometry: list[dict[str, Any]]
    versions: dict[str, str]


def averages(models: Iterable[ModelEntry], results: Sequence[ResultEntry]) -> list[AverageEntry]:
    """The papers' averages of each model that has all tasks of one: the mean of the values rounded to two decimals.

    Returns:
        `sts7` and `transfer7` entries, themselves unrounded; none for a model that lacks a task or has a null figure.
    """
    found: list[AverageEntry] = []
    for model in models:
        values = {
            entry["task"]: entry["value"]
            for entry in results
            if entry["model"] == model["id"] and entry["metric"] != "f1" and entry["split"] == "test"
        }
        for name, tasks in AVERAGES.items():
            complete = [value for task in tasks if (value := values.get(task)) is not None]
            if len(complete) == len(tasks):
                value = fmean(round(value, 2) for value in complete)
                found.append({"model": model["id"], "name": name, "value": value})
    return found


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this package and of installed `packages`, read from their metadata: nothing is imported."""
    return {"simcse_kit": __version__} | {package: version(package) for package in packages}


def write_results(path: Path, results: ResultFile) -> None:
    """Write a result file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_results(path: Path) -> ResultFile:
    """Read a result file.

    Raises:
        UserError: If there is none, or it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not (isinstance(content, dict) and all(_holds(content.get(part), keys) for part, keys in _NEEDED.items())):
        raise UserError(f"{path}: not a result file of simcse-eval --json")
    # What files of other makers need not have.
    optional: dict[str, Any] = {"seeds": [], "differences": [], "geometry": [], "versions": {}}
    models = [{"training": None, **model} for model in content["models"]]
    results = [{"overlap": None, **entry} for entry in content["results"]]
    return cast(ResultFile, {**optional, **content, "models": models, "results": results})


def _holds(entries: Any, keys: frozenset[str]) -> bool:
    """Whether something is a list of objects that have these keys."""
    return isinstance(entries, list) and all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries)
