"""`simcse-compare`: the models of several result files in one table, if their figures can be compared at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simcse_kit.cli.common import command_app, output_console, run

app = command_app()


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Result files of simcse-eval --json.", metavar="RESULTS.json ...")
    ],
) -> None:
    """Put results side by side; figures of one task by different protocols are refused, and the difference named."""
    from simcse_kit.evaluate.compare import merge
    from simcse_kit.evaluate.results import read_results
    from simcse_kit.evaluate.table import results_table

    output_console().print(results_table(merge({str(file): read_results(file) for file in files})))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
