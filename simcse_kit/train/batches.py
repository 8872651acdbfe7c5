"""The training rows, and which of them make up each step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simcse_kit.data.documents import WINDOWS, document_lines, positives_from_documents
from simcse_kit.data.hub import fetch_file
from simcse_kit.data.nli import HARD_NEGATIVES, classes_of_pairs, tuples_from_pairs
from simcse_kit.data.overlap import Fingerprints, fingerprints
from simcse_kit.data.readers import expand, read_columns
from simcse_kit.data.sts import load_evaluation
from simcse_kit.errors import UserError
from simcse_kit.objectives.settings import PooledObjectiveSection
from simcse_kit.train.sections import DataSection, TrainSection


@dataclass(frozen=True)
class TrainingRows:
    """Texts by column, and what is known of each row beside them.

    Attributes:
        texts: For each column the text of every row; all equally long.
        labels: Class ids (int64) or gold scores (float32), [rows]; None where rows have no label.
    """

    texts: tuple[list[str], ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts[0])

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the text, [rows, columns]."""
        return fingerprints(self.texts)


def read_rows(data: DataSection, seed: int) -> TrainingRows:
    """Read the training text of a recipe, whole.

    Raises:
        UserError: If a file, column or cell is not as it should be.
    """
    match data.convert:
        case "nli_triplets" | "nli_quadruplets":
            negatives = HARD_NEGATIVES[data.convert]
            return TrainingRows(_columns(tuples_from_pairs(*_read_labelled(data), negatives, seed=seed)))
        case "nli_pairs":
            return _with_classes(*_read_labelled(data))
        case "labelled_pairs":
            first, second, labels = _read_labelled(data)
            return TrainingRows((first, second), torch.tensor(_integers(labels)))
        case "scored_pairs":
            return _scored_pairs(data)
        case "next_sentence" | "next_three_sentences":
            lines = document_lines(map(_document, expand(data.train)))
            return TrainingRows(_columns(positives_from_documents(lines, WINDOWS[data.convert], seed=seed)))
        case None:
            return TrainingRows(tuple(read_columns(data.train, data.columns).values()))


def check_classes(rows: TrainingRows, objectives: Sequence[PooledObjectiveSection]) -> None:
    """See that the rows' classes are among those of the objectives that learn from them.

    Raises:
        UserError: Else, with the first row whose class is not.
    """
    for objective in objectives:
        if objective.num_classes is not None and rows.labels is not None:
            beyond = (rows.labels >= objective.num_classes).nonzero()
            if len(beyond):
                row, last = int(beyond[0]), objective.num_classes - 1
                raise UserError(
                    f"data.train, row {row + 1}: class {int(rows.labels[row])} is none that {objective.name} has "
                    f"(0 to {last})"
                )


def _document(source: str | Path) -> Path:
    if isinstance(source, Path):
        return source
    if source.startswith("hf://"):
        return fetch_file(source)
    raise UserError(f"data.train: {source} has no documents; they are text files with blank lines between them")


def _read_labelled(data: DataSection) -> tuple[list[str], list[str], list[str]]:
    first, second, labels = read_columns(data.train, data.columns, labels=data.columns[2:]).values()
    return first, second, labels


def _columns(rows: Sequence[tuple[str, ...]]) -> tuple[list[str], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _with_classes(premises: list[str], hypotheses: list[str], labels: list[str]) -> TrainingRows:
    """NLI pairs with a gold label, and their classes."""
    classes = classes_of_pairs(labels)
    rows = [(p, h, c) for p, h, c in zip(premises, hypotheses, classes, strict=True) if c is not None]
    if not rows:
        raise UserError("data.convert: nli_pairs: no row has a gold label")
    first, second, ids = zip(*rows, strict=True)
    return TrainingRows((list(first), list(second)), torch.tensor(ids))


def _integers(labels: list[str]) -> list[int]:
    for row, label in enumerate(labels, start=1):
        if not label.strip().isdecimal():
            raise UserError(f"row {row}: {label!r} is no class; labelled_pairs needs integers from 0")
    return [int(label) for label in labels]


def _scored_pairs(data: DataSection) -> TrainingRows:
    """Pairs with gold scores, of each source in turn."""
    sources = expand(data.train)
    subsets = [subset for source in sources for subset in load_evaluation(source, task="train", split="train").subsets]
    first = [text for subset in subsets for text in subset.sentences1]
    second = [text for subset in subsets for text in subset.sentences2]
    scores = [score for subset in subsets for score in subset.scores.tolist()]
    return TrainingRows((first, second), torch.tensor(scores, dtype=torch.float32))


@dataclass(frozen=True)
class Schedule:
    """How many steps a run has, and which rows each of them sees.

    Attributes:
        rows: Training rows.
        batch_size: Rows a step, over all processes.
        steps_per_epoch: Optimiser steps in which every row is seen once.
        steps: Optimiser steps of the run.
        shuffle: Whether every epoch has an order of its own.
        seed: Of these orders.
    """

    rows: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    shuffle: bool
    seed: int

    @classmethod
    def of(cls, rows: int, train: TrainSection, *, shuffle: bool, seed: int) -> Schedule:
        """The schedule of a recipe over ``rows`` rows.

        Raises:
            UserError: If there are fewer rows than a batch has and the short last batch is to be dropped.
        """
        per_epoch = rows / train.batch_size
        steps_per_epoch = math.floor(per_epoch) if train.drop_last else math.ceil(per_epoch)
        if not steps_per_epoch:
            raise UserError(f"train.drop_last: {rows} rows do not fill one batch of {train.batch_size}")
        steps = train.max_steps or math.ceil(train.epochs * steps_per_epoch)
        return cls(rows, train.batch_size, steps_per_epoch, steps, shuffle, seed)

    def batches(self, done: int) -> Iterator[list[int]]:
        """The rows of each step after the first ``done`` ones; any step's rows depend on the seed alone."""
        order: list[int] = []
        for step in range(done, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if not order or place == 0:
                order = self._order(epoch)
            yield order[place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        return order
