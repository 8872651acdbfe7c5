"""What a run shows before and after: a figure on a set it never selects on, and some nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simcse_kit.data.sts import StsTask, load_evaluation
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.train.recipe import ReportSection


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


def open_report(section: ReportSection) -> StsTask:
    """Read the set of a recipe's ``report``.

    Raises:
        UserError: If it is not as it should be.
    """
    return load_evaluation(section.data, task=section.task, split=section.split, text=section.text)


def report_on(encoder: SentenceEncoder, task: StsTask, neighbours: int) -> Report:
    """Score an encoder on the set, and find the nearest neighbours of its first different sentences in it."""
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
