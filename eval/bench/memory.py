"""``memory``: the resident set of supervised training, by batch and chunk size, in a process each."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from eval.bench.machine import describe_machine
from eval.bench.process import in_fresh_process, peak_bytes
from eval.bench.results import MemoryResult, MemorySettings, TrainingMemory
from eval.result_files import public_name
from simcse_kit.data.files import iter_rows

_COLUMNS = ("sent0", "sent1", "hard_neg")


def bench_memory(
    model: str, triplets: Path, batch_sizes: Sequence[int], chunk_sizes: Sequence[int | None], settings: MemorySettings
) -> MemoryResult:
    """Measure training at each batch size with each chunk size; a chunk that is no smaller is the whole batch.

    Args:
        model: A name or path; trained with pooling mean and no head.
        triplets: A file with columns sent0, sent1, hard_neg.
        batch_sizes: Rows a step.
        chunk_sizes: Rows encoded at a time; None: the whole batch.
        settings: The rest.

    Raises:
        UserError: If the model or the file cannot be opened.
    """
    next(iter_rows(triplets, _COLUMNS), None)  # what is wrong with the file is said before any process is started
    return MemoryResult(
        machine=describe_machine(threads=settings.threads),
        model=public_name(model),
        text=triplets.name,
        settings=settings,
        runs=[
            _measured(model, triplets, batch, chunk, settings)
            for batch in batch_sizes
            for chunk in dict.fromkeys(None if chunk is None or chunk >= batch else chunk for chunk in chunk_sizes)
        ],
    )


def _measured(
    model: str, triplets: Path, batch_size: int, chunk_size: int | None, settings: MemorySettings
) -> TrainingMemory:
    try:
        return in_fresh_process(_train, model, triplets, batch_size, chunk_size, settings)
    except BrokenProcessPool:  # killed by the system
        return TrainingMemory(
            batch_size=batch_size, chunk_size=chunk_size, opened_bytes=None, peak_bytes=None, seconds=[]
        )


def _train(
    model: str, triplets: Path, batch_size: int, chunk_size: int | None, settings: MemorySettings
) -> TrainingMemory:
    """Train in this process, and look at its memory."""
    import torch

    from eval.bench.trainers import Ours
    from simcse_kit.train.recipe import Recipe

    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "model": {"name": model, "pooling": "mean", "head": "none", "max_length": settings.max_length},
            "data": {"train": str(triplets), "columns": list(_COLUMNS)},
            "train": {"batch_size": batch_size, "chunk_size": chunk_size, "precision": settings.precision},
            "output_dir": folder,
        }
        trainer = Ours(Recipe.model_validate(recipe))
    opened = peak_bytes()
    seconds = [trainer.run(step, 1).seconds for step in range(settings.steps)]
    return TrainingMemory(
        batch_size=batch_size, chunk_size=chunk_size, opened_bytes=opened, peak_bytes=peak_bytes(), seconds=seconds
    )
