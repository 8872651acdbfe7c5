"""Batches made ahead of their steps, by a thread of its own: the device need not wait for augmented, tokenised text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from simcse_kit.ahead import made_ahead
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train.prepare import Prepared
from simcse_kit.train.views import Batch

# How many are ready or being made while a step is under way.
_AHEAD = 2


def batches_ahead(prepared: Prepared, done: int) -> Iterator[Batch]:
    """This process's batch of each step after the first ``done`` ones; any step's depends on the seed alone.

    Raises:
        UserError: If the text of a batch cannot be augmented or tokenised.
    """
    tokenizer = TemplateTokenizer(prepared.encoder.tokenizer)
    process = prepared.accelerator.process_index

    def make(rows: list[int], step: int) -> Batch:
        draws = torch.Generator().manual_seed(step_seed(prepared.recipe.seed, step, process))
        return prepared.views.collate(tokenizer, prepared.rows, rows, draws, prepared.masked_lm)

    steps = enumerate(prepared.schedule.batches(done), start=done + 1)
    tasks = (partial(make, rows, step) for step, rows in steps)
    return made_ahead(tasks, count=_AHEAD, thread_name="batches-ahead")


def step_seed(seed: int, step: int, process: int) -> int:
    """What every random draw of a step begins with: it depends on the seed, the step and the process alone."""
    return (seed * 1_000_003 + step) * 1_009 + process
