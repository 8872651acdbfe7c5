"""Which rows make up each step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from simcse_kit.errors import UserError
from simcse_kit.train.sections import TrainSection


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
