"""Pre-train ``simcse-kit/mini``: ``python -m eval.mini pretrain``, then ``python -m eval.mini finish``.

    python -m eval.mini pretrain CORPUS -o runs/mini --minutes 8          # as often as there is time
    python -m eval.mini pretrain CORPUS -o runs/mini --minutes 8 --last   # the learning rate falls to 0
    python -m eval.mini finish runs/mini                                  # model and card to simcse_kit/mini

Every call of ``pretrain`` is a slot: a run of ``recipes/pretrain-mini.yaml`` that begins with the model of the slot
before, in ``runs/mini/slot-N``. All that has to be moved to another machine between slots is the last slot's folder and
the corpus; the tokens are made there anew, with the same vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simcse_kit.cli.common import EXIT_INTERRUPTED, command_app, run
from simcse_kit.errors import UserError

app = command_app()


@app.command()
def pretrain(
    corpus: Annotated[Path, typer.Argument(help="The folder with the text, *.txt.xz.", metavar="CORPUS")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The slots, one folder each.", metavar="DIR")],
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="What this call may take, preparation included.", metavar="N")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or the steps of the slot.", metavar="N")] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Let the learning rate fall to 0: the model is finished.")
    ] = False,
    tokens: Annotated[
        Path | None, typer.Option(help="Where the tokens are, or will be; by default in --output.", metavar="DIR")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A key of the recipe, such as train.lr=2e-3.", metavar="KEY=VALUE")
    ] = None,
) -> int:
    """Train for one slot, from the model of the slot before; an interrupted slot is gone on with."""
    started = time.perf_counter()
    if (minutes is None) == (steps is None):
        raise UserError("name either --minutes or --steps")

    from eval.mini.slots import Clock, Slots, is_last

    slots = Slots(output, tokens or output / "tokens", overrides or [])
    outcome = slots.train(corpus, Clock(minutes, steps, started), last=last, quiet=not sys.stderr.isatty())
    print("\n".join(slots.report()))
    if outcome.interrupted:
        print("stopped; the same command goes on with it")
        return EXIT_INTERRUPTED
    finish_it = f"python -m eval.mini finish {output}"
    ended = is_last(slots.found[-1])
    print(f"go on: {finish_it if ended else 'the same command trains the next slot, with --last the last one'}")
    return 0


@app.command()
def finish(
    slots: Annotated[Path, typer.Argument(help="The folder of the slots.", metavar="DIR")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A new directory; by default where the package has it.", metavar="DIR"),
    ] = None,
) -> None:
    """Write the finished model, its held-out curve and its card."""
    from eval.mini.card import write_model
    from simcse_kit.locate import OWN_MODELS

    target = output or OWN_MODELS["simcse-kit/mini"]
    write_model(slots, target)
    print(f"{target}: model, README.md and pretraining.json")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
