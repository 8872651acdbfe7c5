"""The results as Markdown: each in full, and all committed ones together for the README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, stdev

from eval.bench.results import (
    EncodedSet,
    EncodeResult,
    ImportResult,
    Machine,
    MemoryResult,
    Ratio,
    Result,
    TrainedBy,
    TrainResult,
    read_result,
)
from eval.markdown import DASH, joined, markdown_table

_GIGA = 1e9


def result_tables(result: Result) -> str:
    """A result in full: what it was measured on, its tables, and what was left out."""
    if isinstance(result, EncodeResult):
        blocks = [block for texts in result.sets for block in _encode_table(texts, result)]
    else:
        blocks = [_table(result)]
    left_out = result.left_out if isinstance(result, EncodeResult | TrainResult) else {}
    notes = [f"- {name}: left out, {reason}" for name, reason in left_out.items()]
    return joined([_about(result), *blocks, "\n".join(notes)])


def readme_tables(folder: Path) -> str:
    """The committed results in short, a table for each file.

    Args:
        folder: Where the result files lie.

    Raises:
        UserError: If a file is none.
    """
    results = [read_result(path) for path in sorted(folder.glob("*.json"))]
    return joined(block for result in results for block in (_about(result), _table(result)))


def _table(result: Result) -> str:
    match result:
        case EncodeResult():
            return _encode_summary(result)
        case TrainResult():
            return _train_table(result)
        case MemoryResult():
            return _memory_table(result)
        case ImportResult():
            return _import_table(result)


def _about(result: Result) -> str:
    """What was measured on what, in one line."""
    match result:
        case EncodeResult(model=model, settings=settings):
            what = f"{model}, {settings.rounds} rounds, times as fast as {settings.reference}"
        case TrainResult(model=model, settings=settings):
            what = (
                f"{model}, batch {settings.batch_size}, {settings.max_length} tokens, {settings.steps} steps of "
                f"{len(settings.seeds)} seeds, times as fast as {settings.reference}"
            )
        case MemoryResult(model=model, settings=settings):
            what = f"{model}, triplets of {settings.max_length} tokens, {settings.precision}"
        case ImportResult():
            what = "seconds until the help is there"
    return f"`python -m eval.bench {result.benchmark}`: {what}; {_machine(result.machine)}"


def _machine(machine: Machine) -> str:
    threads = f", threads: {machine.threads}" if machine.threads is not None else ""
    device = "" if machine.device == "cpu" else f"{machine.device}, "
    instructions = f" ({machine.instructions})" if machine.instructions else ""
    return f"{device}{machine.processor}{instructions}{threads}, torch {machine.versions['torch']}"


def _encode_table(texts: EncodedSet, result: EncodeResult) -> Iterator[str]:
    ceiling = ", ".join(f"{median(rates) / _GIGA:,.0f} GFLOP/s {dtype}" for dtype, rates in texts.ceiling.items())
    yield (
        f"**{texts.name}**: {texts.texts:,} texts, {texts.tokens:,} tokens, the longest {texts.longest}; "
        f"matrix ceiling {ceiling}"
    )
    header = [
        "system",
        "times as fast",
        "texts/s",
        "tokens/s",
        "padding",
        "of ceiling",
        "min cosine",
        "STS-B",
        "peak MB",
    ]
    rows = []
    for name, own in texts.systems.items():
        called = name if own.batch_size is None else f"{name} (batch {own.batch_size})"
        score = result.stsb[name] if result.stsb is not None else None
        rows.append(
            [
                called,
                _ratio(own.speedup),
                f"{own.texts_per_second:,.0f}",
                f"{own.tokens_per_second:,.0f}",
                DASH if own.padding is None else f"{own.padding:.1%}",
                f"{own.ceiling_share:.0%}",
                f"{own.min_cosine:.6f}",
                DASH if score is None else f"{score:.2f}",
                _megabytes(own.peak_bytes),
            ]
        )
    yield markdown_table(header, rows, text_columns=1)


def _encode_summary(result: EncodeResult) -> str:
    """Systems by sets: how many times as fast."""
    with_score = result.stsb is not None
    sets = [f"{texts.name} ({texts.texts:,})" for texts in result.sets]
    header = ["system", *sets, "min cosine", *["STS-B"] * with_score]
    rows = []
    for name in result.sets[0].systems:
        own = [texts.systems[name] for texts in result.sets]
        cells = [f"{one.speedup.median:.2f}x" for one in own]
        score = result.stsb[name] if result.stsb is not None else None
        scores = [DASH if score is None else f"{score:.2f}"] * with_score
        rows.append([name, *cells, f"{min(one.min_cosine for one in own):.6f}", *scores])
    return markdown_table(header, rows, text_columns=1)


def _train_table(result: TrainResult) -> str:
    header = ["system", "times as fast", "ms/step", "tokens/s", "of ceiling", "loss, last quarter"]
    rows = [
        [
            name,
            _ratio(own.speedup),
            f"{1000 * median(own.seconds_per_step):,.1f}",
            f"{own.tokens_per_second:,.0f}",
            f"{own.ceiling_share:.0%}",
            _last_loss(own),
        ]
        for name, own in result.systems.items()
    ]
    return markdown_table(header, rows, text_columns=1)


def _last_loss(own: TrainedBy) -> str:
    """The mean loss of the last quarter of the steps, and its standard deviation over seeds."""
    means = [fmean(curve[-max(1, len(curve) // 4) :]) for curve in own.losses.values()]
    return f"{fmean(means):.4f}" + (f" ± {stdev(means):.4f}" if len(means) > 1 else "")


def _memory_table(result: MemoryResult) -> str:
    header = ["batch", "chunk", "peak MB", "before training", "s/step"]
    rows = [
        [
            f"{run.batch_size:,}",
            DASH if run.chunk_size is None else f"{run.chunk_size:,}",
            "killed" if run.peak_bytes is None else _megabytes(run.peak_bytes),
            _megabytes(run.opened_bytes),
            f"{median(run.seconds):.2f}" if run.seconds else DASH,
        ]
        for run in result.runs
    ]
    return markdown_table(header, rows, text_columns=0)


def _import_table(result: ImportResult) -> str:
    rows = [
        [f"`{name} --help`", f"{start.median:.2f}", "yes" if start.imports_torch else "no"]
        for name, start in result.commands.items()
    ]
    return markdown_table(["command", "seconds", "imports torch"], rows, text_columns=1)


def _ratio(ratio: Ratio) -> str:
    """The median and, in brackets, the quartiles."""
    return f"{ratio.median:.2f}x [{ratio.lower_quartile:.2f}, {ratio.upper_quartile:.2f}]"


def _megabytes(amount: int | None) -> str:
    return DASH if amount is None else f"{amount / 1e6:,.0f}"
