"""How fast, beside the peers: ``python -m eval.bench encode|train|memory|import``.

    python -m eval.bench encode --texts stsb=stsb:SENTEVAL --texts wiki=wiki.txt --texts mix=lognormal16:wiki.txt \
        --senteval SENTEVAL -o encode.json
    python -m eval.bench train --text wiki.txt --seeds 1,2,3,4,5 -o train.json
    python -m eval.bench memory --triplets nli_triplets.csv --batch-sizes 64,4096 -o memory.json
    python -m eval.bench import -o import.json

Ours and the peers' take turns on the same texts. Each command prints tables and writes a result file with every raw
time. Systems that this machine cannot run are left out, with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eval.bench.choice import named_systems
from eval.bench.machine import usable_cores
from simcse_kit.cli.common import DeviceOption, MaxLengthOption, command_app, run
from simcse_kit.errors import UserError
from simcse_kit.output import check_output

if TYPE_CHECKING:
    from eval.bench.results import Result

app = command_app()

ModelOption = Annotated[str, typer.Option(help="The same for all: a directory, a packaged model's name or a hub id.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The result file.", metavar="FILE")]
SystemsOption = Annotated[
    str | None, typer.Option(help="Names, separated by commas; by default all.", metavar="NAME,...")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Of torch; by default as many as there are cores.", metavar="N")
]
_DEFAULT_MODEL = "all-MiniLM-L6-v2"


@app.command()
def encode(
    texts: Annotated[
        list[str],
        typer.Option(
            help="SOURCE: a file with a text a line; stsb:DIR, the sentences of STS-B; lognormalM:FILE, 1 to 256 "
            "tokens of a file's words, M in the middle; lengthN:FILE, N tokens each.",
            metavar="NAME=SOURCE",
        ),
    ],
    output: OutputOption,
    model: ModelOption = _DEFAULT_MODEL,
    systems: SystemsOption = None,
    reference: Annotated[str, typer.Option(help="What the others are compared with.")] = "sentence-transformers",
    senteval: Annotated[
        Path | None, typer.Option(help="A folder in SentEval's layout: score STS-B test too.", metavar="DIR")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Texts of each set; small samples flatter.")] = 1_500,
    rounds: Annotated[int, typer.Option(min=1, help="Each runs every system once.")] = 7,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    max_length: MaxLengthOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of texts that are made up.")] = 1,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process for each system.")] = True,
) -> None:
    """Encode sets of texts: speed, padding, memory, and whether the vectors are the same."""
    from eval.bench.encode import bench_encode
    from eval.bench.encoders import ENCODERS
    from eval.bench.results import EncodeSettings

    settings = EncodeSettings(
        systems=named_systems(systems, ENCODERS),
        reference=reference,
        count=count,
        rounds=rounds,
        threads=threads or usable_cores(),
        device=device,
        max_length=max_length,
        seed=seed,
        memory=memory,
    )
    check_output(output)
    _finish(bench_encode(model, texts, senteval, settings), output)


@app.command()
def train(
    text: Annotated[Path, typer.Option(help="Sentences, one a line.", metavar="FILE")],
    output: OutputOption,
    model: ModelOption = _DEFAULT_MODEL,
    systems: SystemsOption = None,
    reference: Annotated[str, typer.Option(help="What the others are compared with.")] = "reference",
    seeds: Annotated[str, typer.Option(help="Each trains every system from the start.", metavar="N,N,...")] = "1",
    steps: Annotated[int, typer.Option(min=1, help="Of each system and seed.")] = 200,
    block: Annotated[int, typer.Option(min=1, help="Steps until it is the next system's turn.")] = 50,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    max_length: Annotated[int, typer.Option(min=3, help="Tokens a text is cut to.")] = 32,
    lr: Annotated[float, typer.Option(min=0, help="The learning rate, constant.")] = 3e-5,
    dropout: Annotated[float | None, typer.Option(min=0, help="Of every dropout; by default the model's own.")] = None,
    threads: ThreadsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the seeds that --output has already.")] = False,
) -> None:
    """Train unsupervised SimCSE: seconds a step, and the losses of every step. Written after each seed."""
    from eval.bench.results import TrainResult, TrainSettings, read_result
    from eval.bench.table import result_tables
    from eval.bench.train import bench_train
    from eval.bench.trainers import TRAINERS
    from eval.result_files import write_json

    settings = TrainSettings(
        systems=named_systems(systems, TRAINERS),
        reference=reference,
        seeds=_numbers("--seeds", seeds),
        steps=steps,
        block=block,
        batch_size=batch_size,
        max_length=max_length,
        lr=lr,
        dropout=dropout,
        threads=threads or usable_cores(),
    )
    check_output(output)
    earlier = read_result(output) if resume and output.exists() else None
    if not isinstance(earlier, TrainResult | None):
        raise UserError(f"{output}: not a result of train")
    for result in bench_train(model, text, settings, earlier):
        write_json(output, result)
    print(result_tables(result))


@app.command()
def memory(
    triplets: Annotated[Path, typer.Option(help="Columns sent0, sent1, hard_neg.", metavar="FILE")],
    output: OutputOption,
    model: ModelOption = _DEFAULT_MODEL,
    batch_sizes: Annotated[str, typer.Option(help="Rows a step.", metavar="N,...")] = "64,256,1024,4096",
    chunk_sizes: Annotated[
        str, typer.Option(help="Rows encoded at a time; 0: the whole batch.", metavar="N,...")
    ] = "64",
    steps: Annotated[int, typer.Option(min=1, help="Of each run.")] = 2,
    max_length: Annotated[int, typer.Option(min=3, help="Tokens a text is cut to.")] = 32,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option()] = "fp32",
    threads: ThreadsOption = None,
) -> None:
    """Train supervised SimCSE: peak memory by batch size and chunk size."""
    from eval.bench.memory import bench_memory
    from eval.bench.results import MemorySettings

    settings = MemorySettings(
        steps=steps, max_length=max_length, precision=precision, threads=threads or usable_cores()
    )
    check_output(output)
    chunks = [size or None for size in _numbers("--chunk-sizes", chunk_sizes)]
    _finish(bench_memory(model, triplets, _numbers("--batch-sizes", batch_sizes), chunks, settings), output)


@app.command("import")
def imports(
    output: OutputOption, calls: Annotated[int, typer.Option(min=1, help="Of each command.", metavar="N")] = 9
) -> None:
    """Call every command with --help: seconds, and whether torch is imported."""
    from eval.bench.imports import bench_imports

    check_output(output)
    _finish(bench_imports(calls), output)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def _finish(result: Result, output: Path) -> None:
    from eval.bench.table import result_tables
    from eval.result_files import write_json

    write_json(output, result)
    print(result_tables(result))


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers of a list.

    Raises:
        UserError: If it holds something else, or one of them twice.
    """
    numbers = text.replace(" ", "").split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"{option} {text}: expected different whole numbers, separated by commas")
    return [int(number) for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
