"""The training rows, and which of them make up each step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_kit.batching import pad
from simcse_kit.data.nli import triplets_from_pairs
from simcse_kit.data.overlap import Fingerprints, fingerprints
from simcse_kit.data.readers import read_columns
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.train.recipe import DataSection, TrainSection


@dataclass(frozen=True)
class TrainingRows:
    """Texts by view.

    Attributes:
        views: For each view the text of every row; all equally long. Two dropout views of one text are the same list.
    """

    views: tuple[list[str], ...]

    def __len__(self) -> int:
        return len(self.views[0])

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the text, a column for each text of a row that differs: [rows, columns]."""
        return fingerprints(list({id(view): view for view in self.views}.values()))


def read_rows(data: DataSection, seed: int) -> TrainingRows:
    """Read the training text of a recipe, whole.

    Raises:
        UserError: If a file, column or cell is not as it should be.
    """
    if data.convert == "nli_triplets":
        premises, hypotheses, labels = read_columns(data.train, data.columns, labels=data.columns[2:]).values()
        triplets = triplets_from_pairs(premises, hypotheses, labels, seed=seed)
        anchors, positives, negatives = (list(column) for column in zip(*triplets, strict=True))
        return TrainingRows((anchors, positives, negatives))
    columns = list(read_columns(data.train, data.columns).values())
    return TrainingRows((columns[0], columns[0]) if len(columns) == 1 else tuple(columns))


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


def collate(encoder: SentenceEncoder, data: TrainingRows, rows: list[int], max_length: int) -> tuple[Tensor, Tensor]:
    """Tokenise all views of some rows, each text cut to ``max_length`` tokens, for one forward pass.

    Returns:
        Token ids and attention mask, [V * N, T] each: the rows of the first view, then those of the second, ...
    """
    by_column: dict[int, list[list[int]]] = {}
    for texts in data.views:
        if id(texts) not in by_column:
            by_column[id(texts)] = encoder.tokenize([texts[row] for row in rows], max_length)
    return pad([ids for texts in data.views for ids in by_column[id(texts)]], encoder.pad_id)
