"""Measuring models: every task asked for, its interval, the overlap with the training text, and the geometry.

A model encodes each distinct sentence of all tasks once; everything else works on these vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from simcse_kit.data.overlap import Fingerprints, overlap, read_fingerprints
from simcse_kit.data.sts import StsTask
from simcse_kit.data.transfer import TransferTask
from simcse_kit.errors import UserError
from simcse_kit.evaluate.bootstrap import correlation_interval, paired_difference
from simcse_kit.evaluate.compare import over_seeds
from simcse_kit.evaluate.cross_encoder import PairScorer
from simcse_kit.evaluate.cross_encoder import pair_similarities as scored_pairs
from simcse_kit.evaluate.geometry import geometry
from simcse_kit.evaluate.results import (
    RECORDED_PACKAGES,
    DifferenceEntry,
    ModelEntry,
    OverlapEntry,
    ResultEntry,
    ResultFile,
    SubsetEntry,
    TrainingEntry,
    averages,
    package_versions,
)
from simcse_kit.evaluate.sts import Aggregation, Figure, Metric, pair_similarities, score_similarities
from simcse_kit.evaluate.systems import CROSS_ENCODER, RANDOM, parse_system
from simcse_kit.evaluate.transfer import Classifier, TransferScore, score_transfer
from simcse_kit.evaluate.vectors import Encoder, Vectors
from simcse_kit.progress import progress_display

if TYPE_CHECKING:
    from simcse_kit.evaluate.systems import System

_GEOMETRY_TASK = "STSB"


@dataclass(frozen=True)
class Plan:
    """What is measured, and by which protocol.

    Attributes:
        sts: STS tasks.
        transfer: Transfer tasks.
        metric: Correlation of the STS tasks.
        aggregation: How STS12-16 combine their subsets.
        classifier: Protocol of the transfer tasks.
        transfer_split: `test`, or `dev` for the accuracies on which the classifier's regularisation is chosen.
    """

    sts: Sequence[StsTask]
    transfer: Sequence[TransferTask] = ()
    metric: Metric = "spearman"
    aggregation: Aggregation = "all"
    classifier: Classifier = "senteval"
    transfer_split: str = "test"

    @property
    def sentences(self) -> Iterator[str]:
        """The sentences of all tasks, repeated ones as often as they occur."""
        tasks: list[StsTask | TransferTask] = [*self.sts, *self.transfer]
        return chain.from_iterable(task.sentences for task in tasks)


@dataclass(frozen=True)
class Measurement:
    """One model's entries of the result file, and the similarities from which its STS figures come.

    Attributes:
        model: The model.
        results: Its figures.
        geometry: The geometry of its vectors on STS-B.
        similarities: For each STS task of the plan, for each subset, predictions [n].
    """

    model: ModelEntry
    results: list[ResultEntry]
    geometry: list[dict[str, Any]]
    similarities: list[list[NDArray[np.float64]]]


def describe(model_id: str, system: System) -> ModelEntry:
    """Record a system under the id by which results refer to it."""
    return {
        "id": model_id,
        "path": system.source,
        "weights_sha256": system.weights_sha256,
        "pooling": system.pooling,
        "head": system.head_name,
        "normalize": system.normalize,
        "dtype": str(system.dtype).removeprefix("torch."),
        "max_length": system.max_length,
        "training": training_of(_trained_in(system.source)),
    }


def check_fits(system: str, plan: Plan) -> None:
    """See that a system can be measured by a plan, which its name tells.

    Raises:
        UserError: If it is a cross-encoder and transfer tasks are asked for.
    """
    if plan.transfer and parse_system(system).kind == CROSS_ENCODER:
        raise UserError(f"{system}: a cross-encoder has no vectors for transfer tasks; leave it out")


def measure(model: ModelEntry, system: Encoder | PairScorer, plan: Plan, *, show_progress: bool = False) -> Measurement:
    """Measure one model.

    Args:
        model: Its entry; `path` is where its training text's fingerprints are looked for.
        system: The model itself.
        plan: What to measure.
        show_progress: Show progress displays on standard error.

    Raises:
        UserError: As ``check_fits``.
    """
    check_fits(model["path"], plan)
    seen = read_fingerprints(_trained_in(model["path"]))
    if isinstance(system, PairScorer):
        similarities = scored_pairs(system, plan.sts, show_progress=show_progress)
        return Measurement(model, _sts_entries(model["id"], similarities, plan, seen), [], similarities)
    vectors = Vectors(_ShowingProgress(system) if show_progress else system, plan.sentences)
    similarities = pair_similarities(vectors, plan.sts)
    results = _sts_entries(model["id"], similarities, plan, seen)
    if plan.transfer:
        with progress_display(quiet=not show_progress) as display:
            scores = score_transfer(
                vectors,
                plan.transfer,
                classifier=plan.classifier,
                split=plan.transfer_split,
                on_task=_show_fits(display),
            )
        results += [_transfer_entry(model["id"], score, seen) for score in scores]
    shapes = [_geometry_entry(model["id"], task, vectors) for task in plan.sts if task.name == _GEOMETRY_TASK]
    return Measurement(model, results, shapes, similarities)


def result_file(measurements: Sequence[Measurement], plan: Plan, *, as_seeds: bool = False) -> ResultFile:
    """Assemble the result file of several models.

    Args:
        measurements: The models', all by `plan`.
        plan: What was measured.
        as_seeds: Add mean and standard deviation over the models, as seeds of one system, in place of differences
            from the first.

    Raises:
        UserError: If `as_seeds` and the models are not seeds of one system.
    """
    models = [measurement.model for measurement in measurements]
    results = [entry for measurement in measurements for entry in measurement.results]
    means = averages(models, results)
    return {
        "models": models,
        "results": results,
        "averages": means,
        "seeds": over_seeds(models, results, means) if as_seeds else [],
        "differences": [] if as_seeds else list(_differences(measurements, plan)),
        "geometry": [entry for measurement in measurements for entry in measurement.geometry],
        "versions": package_versions(RECORDED_PACKAGES),
    }


def _trained_in(source: str) -> Path:
    """The run directory of a system; of random weights, which no run has trained, a name that is none."""
    kind, model, _ = parse_system(source)
    return Path(source if kind == RANDOM else model).expanduser()


def training_of(directory: Path) -> TrainingEntry | None:
    """What the run directory that a model lies in says of its training; None for a model from elsewhere."""
    try:
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        return {
            "seed": run["seed"],
            "commit": run["commit"],
            "data": run["data"]["train"],
            "best": run["best"],
            "chosen_on": list(run["data"].get("evaluation", {}).values()),
            "selected_on_test": run["selected_on_test"],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class _ShowingProgress:
    """An encoder that shows how far it is, if it can."""

    encoder: Encoder

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        from simcse_kit.encoder import SentenceEncoder

        if isinstance(self.encoder, SentenceEncoder):
            return self.encoder.encode(sentences, show_progress=True)
        return self.encoder.encode(sentences)


def _show_fits(display: Progress) -> Callable[[str, int, int], None]:
    """A callback that moves a bar for each transfer task."""
    bars: dict[str, TaskID] = {}

    def show(task: str, done: int, total: int) -> None:
        if task not in bars:
            bars[task] = display.add_task(task, total=total, note="")
        display.update(bars[task], completed=done)

    return show


def _sts_entries(
    model_id: str, similarities: list[list[NDArray[np.float64]]], plan: Plan, seen: Fingerprints | None
) -> list[ResultEntry]:
    return [
        _sts_entry(model_id, task, predicted, plan, seen)
        for task, predicted in zip(plan.sts, similarities, strict=True)
    ]


def _sts_entry(
    model_id: str, task: StsTask, similarities: list[NDArray[np.float64]], plan: Plan, seen: Fingerprints | None
) -> ResultEntry:
    score = score_similarities(task, similarities, metric=plan.metric, aggregation=plan.aggregation)
    gold = [subset.scores for subset in task.subsets]
    interval = None
    if score.figure.value is not None:
        interval = correlation_interval(similarities, gold, metric=plan.metric, aggregation=plan.aggregation)
    return {
        "model": model_id,
        "task": task.name,
        "split": task.split,
        "metric": plan.metric,
        "aggregation": plan.aggregation,
        "protocol": {"text": task.text, "classifier": None, "data_sha256": task.data_sha256},
        "value": score.figure.value,
        "reason": score.figure.reason,
        "n": score.figure.n,
        "ci95": interval,
        "subsets": {name: _subset_entry(figure) for name, figure in score.subsets.items()},
        "overlap": _overlap_entry(seen, task.sentences),
    }


def _transfer_entry(model_id: str, score: TransferScore, seen: Fingerprints | None) -> ResultEntry:
    return {
        "model": model_id,
        "task": score.task.name,
        "split": score.split,
        "metric": score.metric,
        "aggregation": None,
        "protocol": {"text": "disk", "classifier": score.classifier, "data_sha256": score.task.data_sha256},
        "value": score.figure.value,
        "reason": score.figure.reason,
        "n": score.figure.n,
        "ci95": None,
        "subsets": {},
        "overlap": _overlap_entry(seen, score.task.sentences),
    }


def _subset_entry(figure: Figure) -> SubsetEntry:
    entry: SubsetEntry = {"value": figure.value, "n": figure.n}
    if figure.reason is not None:
        entry["reason"] = figure.reason
    return entry


def _overlap_entry(seen: Fingerprints | None, sentences: Iterable[str]) -> OverlapEntry | None:
    if seen is None:
        return None
    found = overlap(seen, sentences)
    return {
        "train_rows": found.train_rows,
        "of_rows": found.of_rows,
        "sentences": found.sentences,
        "of_sentences": found.of_sentences,
    }


def _geometry_entry(model_id: str, task: StsTask, vectors: Encoder) -> dict[str, Any]:
    (subset,) = task.subsets
    distinct = np.unique(list(task.sentences), return_index=True)[1]
    shape = geometry(vectors.encode(subset.sentences1), vectors.encode(subset.sentences2), subset.scores, distinct)
    return {"model": model_id, "task": task.name, "split": task.split, "text": task.text, **shape.as_json()}


def _differences(measurements: Sequence[Measurement], plan: Plan) -> Iterator[DifferenceEntry]:
    """Each later model's STS figures less the first one's."""
    baseline, *others = measurements
    for other in others:
        for i, task in enumerate(plan.sts):
            found = paired_difference(
                other.similarities[i],
                baseline.similarities[i],
                [subset.scores for subset in task.subsets],
                metric=plan.metric,
                aggregation=plan.aggregation,
            )
            if found is not None:
                yield {
                    "model": other.model["id"],
                    "baseline": baseline.model["id"],
                    "task": task.name,
                    "split": task.split,
                    "metric": plan.metric,
                    "aggregation": plan.aggregation,
                    "value": found.value,
                    "ci95": found.ci95,
                    "p_value": found.p_value,
                }
