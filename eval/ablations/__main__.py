"""Run grids of ablations on a backbone: ``python -m eval.ablations GRID ...``.

    python -m eval.ablations dropout pooling --model bert-base-uncased --seeds 42,1,2 \
        --text wiki1m.txt --data SENTEVAL --set train.precision=bf16 -o ablations

Every row of a grid (``grids/NAME.yaml``) is trained with every seed by the code of simcse-train, all rows with one seed
before the next one, and its best model is measured on STS-B dev, which chose it, and STS-B test. Run again, the command
passes over what is complete and goes on with what was interrupted. The result of a grid is ``DIR/GRID.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from eval.ablations.options import (
    BudgetOption,
    DataOption,
    DocumentsOption,
    KeepModelsOption,
    ModelOption,
    OutputOption,
    PairsOption,
    RowsOption,
    ScoredOption,
    SeedsOption,
    TextOption,
    TripletsOption,
    parse_seeds,
)
from simcse_kit.cli.common import EXIT_INTERRUPTED, command_app, run

app = command_app()


@app.command()
def ablations(
    grids: Annotated[list[str], typer.Argument(metavar="GRID ...", help="Names in eval/ablations/grids, or files.")],
    model: ModelOption,
    data: DataOption,
    output: OutputOption,
    seeds: SeedsOption = "42,1,2",
    text: TextOption = None,
    documents: DocumentsOption = None,
    pairs: PairsOption = None,
    triplets: TripletsOption = None,
    scored: ScoredOption = None,
    budget: BudgetOption = None,
    rows: RowsOption = None,
    sts_text: Annotated[Literal["disk", "raw"], typer.Option(help="STS-B as SentEval tokenises it, or raw.")] = "disk",
    tasks: Annotated[
        Literal["STSB", "sts"], typer.Option(help="sts: the seven STS tasks and their average too.")
    ] = "STSB",
    keep_models: KeepModelsOption = False,
) -> int:
    """Run grids of ablations on a backbone and print their tables beside the papers' figures."""
    from eval.ablations.grid import Common, check_files, read_grid, training_files

    named = dict(map(read_grid, grids))
    files = training_files(text, documents, pairs, triplets, scored)
    check_files(named, files)
    numbers = parse_seeds(seeds)

    from eval.ablations.results import read_grid_result
    from eval.ablations.runs import Sets
    from eval.ablations.study import Study
    from eval.ablations.table import grid_table
    from eval.published import read_published

    common = Common(model, files, data, sts_text, budget or [], rows)
    sets = Sets.load(data, text=sts_text, all_tasks=tasks == "sts")
    studies = [Study(name, grid, common, sets, output, numbers, keep_models) for name, grid in named.items()]
    for study in studies:
        study.check()
    output.mkdir(parents=True, exist_ok=True)
    published = read_published()
    for study in studies:
        if not study.run():
            return EXIT_INTERRUPTED
        result = read_grid_result(study.result_file)
        print(f"\n{result.title}, from {result.model}\n\n{grid_table(result, published)}\n")
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
