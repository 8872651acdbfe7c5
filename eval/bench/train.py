"""``train``: systems by turns, a block of steps each, on the same batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from eval.bench.choice import runnable
from eval.bench.flops import ceiling_share, encoder_flops, matrix_ceiling
from eval.bench.machine import describe_machine, public_name
from eval.bench.results import TrainedBy, TrainResult, TrainSettings
from eval.bench.texts import lines_of
from eval.bench.timing import paired_ratio, rotated
from eval.bench.trainers import TRAINERS, Block, Work
from simcse_kit.backbone import parse_device
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError

# A backward pass multiplies by the weights and by the states, and so twice as much as the forward pass.
_PASSES = 3
_VIEWS = 2


@dataclass(frozen=True)
class _Noted:
    """What is noted of every block, seed after seed: by system, by type, and of its texts."""

    blocks: dict[str, list[Block]]
    ceiling: dict[str, list[float]]
    tokens: list[int] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)


def bench_train(model: str, text: Path, settings: TrainSettings) -> TrainResult:
    """Measure the training steps of systems, on each seed from the start.

    Args:
        model: A name or path, the same for all systems.
        text: A file with a text a line.
        settings: The rest; systems that this machine cannot run are left out.

    Raises:
        UserError: If the model or the text cannot be opened, or the settings do not fit together.
    """
    torch.set_num_threads(settings.threads)
    device = parse_device(None)
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
    noted = _Noted({name: [] for name in names}, {TRAINERS[name].dtype: [] for name in names})
    for seed in settings.seeds:
        _train_by_turns(_work(model, texts, settings, seed), settings, plain, noted)
    each = settings.steps // settings.block
    timed = [number for number in range(len(noted.tokens)) if number % each]
    seconds = {name: [own[number].seconds for number in timed] for name, own in noted.blocks.items()}
    ceiling = {dtype: [rates[number] for number in timed] for dtype, rates in noted.ceiling.items()}
    flops = [noted.flops[number] for number in timed]
    return TrainResult(
        machine=describe_machine(threads=settings.threads, device=device),
        model=public_name(model),
        text=text.name,
        settings=settings,
        left_out=left_out,
        ceiling=ceiling,
        systems={
            name: TrainedBy(
                seconds_per_step=[second / settings.block for second in seconds[name]],
                speedup=paired_ratio(seconds[settings.reference], seconds[name]),
                tokens_per_second=float(np.median(np.array(noted.tokens)[timed] / np.array(seconds[name]))),
                ceiling_share=ceiling_share(flops, seconds[name], ceiling[TRAINERS[name].dtype]),
                losses=dict(zip(settings.seeds, _curves(noted.blocks[name], each), strict=True)),
            )
            for name in names
        },
    )


def _train_by_turns(work: Work, settings: TrainSettings, plain: SentenceEncoder, noted: _Noted) -> None:
    """Train every system on one seed from the start, a block of steps at a time, and note what there is to."""
    names = list(noted.blocks)
    trainers = {name: TRAINERS[name].open(work) for name in names}
    starts = range(0, settings.steps, settings.block)
    for start, order in zip(starts, rotated(names, len(starts)), strict=True):
        for name in order:
            noted.blocks[name].append(trainers[name].run(start, settings.block))
        for dtype, rates in noted.ceiling.items():
            rates.append(matrix_ceiling(dtype, plain.device))
        texts = [text for step in range(start, start + settings.block) for text in work.batch(step)]
        lengths = [len(ids) for ids in plain.tokenize(texts, settings.max_length)]
        noted.tokens.append(_VIEWS * sum(lengths))
        noted.flops.append(_VIEWS * _PASSES * encoder_flops(plain.backbone, lengths))


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


def _curves(blocks: Sequence[Block], each: int) -> Iterator[list[float]]:
    """The losses of each seed, which has so many blocks."""
    for start in range(0, len(blocks), each):
        yield [loss for block in blocks[start : start + each] for loss in block.losses]
