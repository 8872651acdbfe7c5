"""``encode``: systems by turns on the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.bench.choice import runnable
from eval.bench.encoders import ENCODERS, Model, System, computed_tokens
from eval.bench.flops import ceiling_share, encoder_flops, matrix_ceiling
from eval.bench.machine import describe_machine
from eval.bench.process import in_fresh_process, peak_bytes
from eval.bench.results import EncodedBy, EncodedSet, EncodeResult, EncodeSettings
from eval.bench.texts import TextSet, open_text_set
from eval.bench.timing import paired_ratio, time_rounds
from eval.result_files import public_name
from simcse_kit.backbone import parse_device
from simcse_kit.data.sts import load_sts_task
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.evaluate.sts import cosine_similarity, score_sts


def bench_encode(model: str, texts: Sequence[str], senteval: Path | None, settings: EncodeSettings) -> EncodeResult:
    """Measure systems on sets of texts.

    Args:
        model: A name or path, the same for all systems.
        texts: Sets, as ``open_text_set`` takes them.
        senteval: A folder with STS-B, if that is to be scored.
        settings: The rest; systems that this machine cannot run are left out.

    Raises:
        UserError: If the model, a set or STS-B cannot be opened, or the reference cannot be run.
    """
    torch.set_num_threads(settings.threads)
    device = parse_device(settings.device)
    names, left_out = runnable(settings.systems, settings.reference, ENCODERS, device)
    plain = SentenceEncoder.from_pretrained(model, device=device, max_length=settings.max_length)

    def tokenize(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = plain.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    sets = [open_text_set(named, count=settings.count, seed=settings.seed, tokenize=tokenize) for named in texts]
    task = load_sts_task("STSB", [senteval]) if senteval is not None else None
    opening = Model(model, device, settings.max_length)
    systems = {name: ENCODERS[name].open(opening, ENCODERS[name].dtype) for name in names}
    return EncodeResult(
        machine=describe_machine(threads=settings.threads, device=device),
        model=public_name(model),
        settings=settings,
        left_out=left_out,
        stsb=None if task is None else {name: score_sts(system, task).value for name, system in systems.items()},
        sets=[_encode_set(chosen, plain, systems, opening, settings) for chosen in sets],
    )


def _encode_set(
    chosen: TextSet, plain: SentenceEncoder, systems: Mapping[str, System], opening: Model, settings: EncodeSettings
) -> EncodedSet:
    """Warm all systems up on a set, noting what they compute, and then time them by turns."""
    texts = chosen.texts
    lengths = [len(ids) for ids in plain.tokenize(texts)]
    tokens, flops = sum(lengths), encoder_flops(plain.backbone, lengths)
    expected, cosines, computed = systems[settings.reference].encode(texts), {}, {}
    for name, system in systems.items():
        cosines[name] = float(cosine_similarity(system.encode(texts), expected).min())
        computed[name] = computed_tokens(system, texts)
        system.fit(texts)
    ceiling: dict[str, list[float]] = {ENCODERS[name].dtype: [] for name in systems}
    runs: dict[str, Callable[[], object]] = {name: partial(system.encode, texts) for name, system in systems.items()}
    runs |= {
        f"ceiling, {dtype}": partial(_note_ceiling, noted, dtype, plain.device) for dtype, noted in ceiling.items()
    }
    seconds = time_rounds(runs, settings.rounds)
    found = {}
    for name, system in systems.items():
        own, seen = seconds[name], computed[name]
        median = float(np.median(own))
        found[name] = EncodedBy(
            seconds=own,
            speedup=paired_ratio(seconds[settings.reference], own),
            texts_per_second=len(texts) / median,
            tokens_per_second=tokens / median,
            padding=1 - tokens / seen if seen is not None else None,
            min_cosine=cosines[name],
            ceiling_share=ceiling_share(flops, own, ceiling[ENCODERS[name].dtype]),
            batch_size=system.batch_size,
            peak_bytes=in_fresh_process(_peak, name, opening, system.batch_size, texts, settings.threads)
            if settings.memory
            else None,
        )
    return EncodedSet(
        name=chosen.name,
        source=chosen.source,
        texts=len(texts),
        tokens=tokens,
        longest=max(lengths),
        flops=flops,
        ceiling=ceiling,
        systems=found,
    )


def _note_ceiling(noted: list[float], dtype: str, device: torch.device) -> None:
    noted.append(matrix_ceiling(dtype, device))


def _peak(name: str, opening: Model, batch_size: int | None, texts: list[str], threads: int) -> int:
    torch.set_num_threads(threads)
    system = ENCODERS[name].open(opening, ENCODERS[name].dtype)
    system.batch_size = batch_size
    system.encode(texts)
    return peak_bytes()
