"""The result file of `simcse-eval --json`: figures together with the protocol and the model they belong to.

The TypedDicts are the file's shape, key for key, and its only definition. Correlations are x100 and unrounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from simcse_kit import __version__
from simcse_kit.evaluate.sts import Figure, StsScore, sts7
from simcse_kit.output import replacing

if TYPE_CHECKING:
    from simcse_kit.encoder import SentenceEncoder

_RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


class ModelEntry(TypedDict):
    """A model, in the state in which it was measured."""

    id: str
    path: str
    weights_sha256: str
    pooling: str
    head: str
    normalize: bool
    dtype: str
    max_length: int


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


class ResultEntry(TypedDict):
    """One figure of one model; `reason` says why `value` is null; `ci95` is null where no interval was computed."""

    model: str
    task: str
    split: str
    metric: str
    aggregation: str
    protocol: Protocol
    value: float | None
    reason: str | None
    n: int
    ci95: tuple[float, float] | None
    subsets: dict[str, SubsetEntry]


class AverageEntry(TypedDict):
    """A model's average over a named set of tasks."""

    model: str
    name: str
    value: float


class ResultFile(TypedDict):
    """The whole file."""

    models: list[ModelEntry]
    results: list[ResultEntry]
    averages: list[AverageEntry]
    versions: dict[str, str]


def describe_model(model_id: str, encoder: SentenceEncoder) -> ModelEntry:
    """Record an encoder under the id by which results refer to it."""
    return {
        "id": model_id,
        "path": encoder.source,
        "weights_sha256": encoder.weights_sha256,
        "pooling": encoder.pooling,
        "head": encoder.head_name,
        "normalize": encoder.normalize,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "max_length": encoder.max_length,
    }


def result_file(models: Sequence[ModelEntry], scores: Mapping[str, Sequence[StsScore]]) -> ResultFile:
    """Assemble the result file.

    Args:
        models: The models' entries.
        scores: Each model's scores, by the model's id.

    Returns:
        The file's content, with the average `sts7` of each model that has all seven tasks.
    """
    averages = {model_id: sts7(of_model) for model_id, of_model in scores.items()}
    return {
        "models": list(models),
        "results": [_result_entry(model_id, score) for model_id, of_model in scores.items() for score in of_model],
        "averages": [
            {"model": model_id, "name": "sts7", "value": value}
            for model_id, value in averages.items()
            if value is not None
        ],
        "versions": package_versions(_RECORDED_PACKAGES),
    }


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this package and of installed `packages`, read from their metadata: nothing is imported."""
    return {"simcse_kit": __version__} | {package: version(package) for package in packages}


def write_results(path: Path, results: ResultFile) -> None:
    """Write a result file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _result_entry(model_id: str, score: StsScore) -> ResultEntry:
    return {
        "model": model_id,
        "task": score.task.name,
        "split": score.task.split,
        "metric": score.metric,
        "aggregation": score.aggregation,
        "protocol": {"text": score.task.text, "classifier": None, "data_sha256": score.task.data_sha256},
        "value": score.figure.value,
        "reason": score.figure.reason,
        "n": score.figure.n,
        "ci95": None,
        "subsets": {name: _subset_entry(figure) for name, figure in score.subsets.items()},
    }


def _subset_entry(figure: Figure) -> SubsetEntry:
    entry: SubsetEntry = {"value": figure.value, "n": figure.n}
    if figure.reason is not None:
        entry["reason"] = figure.reason
    return entry
