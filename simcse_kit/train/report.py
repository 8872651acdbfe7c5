"""The STS sets of a recipe, and what a run shows before and after: a figure and some nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simcse_kit.data.sts import StsTask, load_evaluation
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.evaluate.sts import correlate, score_sts
from simcse_kit.train.sections import EvaluationSection, ReportSection


@dataclass(frozen=True)
class Neighbour:
    """A sentence and the one closest to it, by cosine."""

    query: str
    nearest: str
    cosine: float


@dataclass(frozen=True)
class Report:
    """What one encoder makes of the report's set."""

    spearman: float | None
    neighbours: list[Neighbour]


def open_task(section: EvaluationSection | ReportSection | None) -> StsTask | None:
    """Read the set of a recipe's ``evaluation`` or ``report``; None if it names none.

    Raises:
        UserError: If it is not as it should be, or its gold scores leave Spearman undefined.
    """
    if section is None or section.data is None:
        return None
    task = load_evaluation(section.data, task=section.task, split=section.split, text=section.text)
    gold = np.concatenate([subset.scores for subset in task.subsets])
    reason = correlate(np.arange(len(gold), dtype=np.float64), gold, "spearman").reason
    if reason is not None:
        raise UserError(f"{section.data}: Spearman is undefined on this set: {reason}")
    return task


def report_on(encoder: SentenceEncoder, task: StsTask, neighbours: int) -> Report:
    """Score an encoder on the set, and find the nearest neighbours of some of its sentences."""
    return Report(score_sts(encoder, task).value, _neighbours(encoder, task, neighbours))


def _neighbours(encoder: SentenceEncoder, task: StsTask, count: int) -> list[Neighbour]:
    if not count:
        return []
    sentences = list(dict.fromkeys(text for part in task.subsets for text in [*part.sentences1, *part.sentences2]))
    queries = np.linspace(0, len(sentences) - 1, count, dtype=int)
    vectors = encoder.encode(sentences, normalize=True)
    cosines = vectors[queries] @ vectors.T  # [count, sentences]
    cosines[np.arange(len(queries)), queries] = -np.inf
    nearest = cosines.argmax(axis=1)
    return [
        Neighbour(sentences[query], sentences[found], float(cosines[row, found]))
        for row, (query, found) in enumerate(zip(queries, nearest, strict=True))
    ]
