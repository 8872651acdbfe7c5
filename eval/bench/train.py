"""``train``: systems by turns, a block of steps each, on the same batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.bench.choice import runnable
from eval.bench.flops import ceiling_share, encoder_flops, matrix_ceiling
from eval.bench.machine import describe_machine
from eval.bench.results import TrainedBy, TrainResult, TrainSettings
from eval.bench.texts import lines_of
from eval.bench.timing import paired_ratio, rotated
from eval.bench.trainers import TRAINERS, Work
from eval.result_files import public_name
from simcse_kit.backbone import parse_device
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError

# A backward pass multiplies by the weights and by the states, and so twice as much as the forward pass.
_PASSES = 3
_VIEWS = 2


@dataclass(frozen=True)
class _Noted:
    """What is noted of every block but the first of a seed: by system, by type, and of its texts; and all losses."""

    seconds: dict[str, list[float]]
    ceiling: dict[str, list[float]]
    losses: dict[str, dict[int, list[float]]]
    tokens: list[float]
    flops: list[float]

    @classmethod
    def nothing(cls, names: Sequence[str]) -> _Noted:
        """Before the first step of any system."""
        types = {TRAINERS[name].dtype: [] for name in names}
        return cls({name: [] for name in names}, types, {name: {} for name in names}, [], [])

    @classmethod
    def of(cls, result: TrainResult) -> _Noted:
        """What led to a result."""
        seconds = {name: own.seconds_per_step for name, own in result.systems.items()}
        losses = {name: own.losses for name, own in result.systems.items()}
        return cls(seconds, result.ceiling, losses, result.tokens, result.flops)


def bench_train(
    model: str, text: Path, settings: TrainSettings, earlier: TrainResult | None = None
) -> Iterator[TrainResult]:
    """Measure the training steps of systems, on each seed from the start.

    Args:
        model: A name or path, the same for all systems.
        text: A file with a text a line.
        settings: The rest; systems that this machine cannot run are left out.
        earlier: What some of the seeds gave before; the others follow.

    Yields:
        The result of all seeds so far, after each.

    Raises:
        UserError: If the model or the text cannot be opened, the settings do not fit together, or the earlier result
            is of something else.
    """
    torch.set_num_threads(settings.threads)
    device = parse_device(None)
    if torch.cuda.device_count() > 1:
        raise UserError(
            "there are several GPUs, and SentenceTransformerTrainer would use all: set CUDA_VISIBLE_DEVICES=0"
        )
    names, left_out = runnable(settings.systems, settings.reference, TRAINERS, device)
    if settings.steps % settings.block or settings.steps < 2 * settings.block:
        raise UserError(
            f"--steps {settings.steps}: expected a multiple of --block {settings.block}, and at least two blocks: the "
            "first of them warms up"
        )
    texts = list(dict.fromkeys(lines_of(text)))
    if len(texts) < settings.batch_size:
        raise UserError(f"{text}: {len(texts):,} different texts do not fill one batch of {settings.batch_size:,}")
    plain = SentenceEncoder.from_pretrained(model, device=device)
    plain.check_max_length(settings.max_length)
    noted = _Noted.nothing(names) if earlier is None else _Noted.of(earlier)

    def result(seeds: Sequence[int]) -> TrainResult:
        return TrainResult(
            machine=describe_machine(threads=settings.threads, device=device),
            model=public_name(model),
            text=text.name,
            settings=settings.model_copy(update={"seeds": list(seeds)}),
            left_out=left_out,
            ceiling=noted.ceiling,
            tokens=noted.tokens,
            flops=noted.flops,
            systems={name: _trained_by(name, noted, settings.reference) for name in names},
        )

    done = [] if earlier is None else earlier.settings.seeds
    same_systems = earlier is None or list(earlier.systems) == names
    if earlier is not None and not (same_systems and earlier == result(done) and set(done) <= set(settings.seeds)):
        raise UserError("--resume: the file is of other systems, settings or texts, or of another machine")
    for seed in settings.seeds:
        if seed not in done:
            _train_by_turns(seed, _work(model, texts, settings, seed), settings, plain, noted)
            done = [*done, seed]
        yield result(done)


def _trained_by(name: str, noted: _Noted, reference: str) -> TrainedBy:
    seconds, ceiling = noted.seconds[name], noted.ceiling[TRAINERS[name].dtype]
    return TrainedBy(
        seconds_per_step=seconds,
        speedup=paired_ratio(noted.seconds[reference], seconds),
        tokens_per_second=float(np.median(np.array(noted.tokens) / np.array(seconds))),
        ceiling_share=ceiling_share(noted.flops, seconds, ceiling),
        losses=noted.losses[name],
    )


def _train_by_turns(seed: int, work: Work, settings: TrainSettings, plain: SentenceEncoder, noted: _Noted) -> None:
    """Train every system on one seed from the start, a block of steps at a time, and note what there is to."""
    names = list(noted.seconds)
    trainers = {name: TRAINERS[name].open(work) for name in names}
    starts = range(0, settings.steps, settings.block)
    for start, order in zip(starts, rotated(names, len(starts)), strict=True):
        blocks = {name: trainers[name].run(start, settings.block) for name in order}
        for name, block in blocks.items():
            noted.losses[name].setdefault(seed, []).extend(block.losses)
        if start == 0:
            continue
        for name, block in blocks.items():
            noted.seconds[name].append(block.seconds / settings.block)
        for dtype, rates in noted.ceiling.items():
            rates.append(matrix_ceiling(dtype, plain.device))
        texts = [text for step in range(start, start + settings.block) for text in work.batch(step)]
        lengths = [len(ids) for ids in plain.tokenize(texts, settings.max_length)]
        noted.tokens.append(_VIEWS * sum(lengths) / settings.block)
        noted.flops.append(_VIEWS * _PASSES * encoder_flops(plain.backbone, lengths) / settings.block)


def _work(model: str, texts: Sequence[str], settings: TrainSettings, seed: int) -> Work:
    """The texts of all steps in the order of a seed, as often as they are needed, each time in a new order."""
    needed = settings.steps * settings.batch_size
    draw = random.Random(seed)
    order: list[str] = []
    while len(order) < needed:
        order += draw.sample(texts, len(texts))
    return Work(
        model=model,
        texts=order[:needed],
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        lr=settings.lr,
        dropout=settings.dropout,
        seed=seed,
    )
