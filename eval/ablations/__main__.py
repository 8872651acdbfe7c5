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
from pathlib import Path
from typing import Annotated, Literal

import typer

from simcse_kit.cli.common import EXIT_INTERRUPTED, command_app, run
from simcse_kit.errors import UserError

app = command_app()


@app.command()
def ablations(
    grids: Annotated[list[str], typer.Argument(metavar="GRID ...", help="Names in eval/ablations/grids, or files.")],
    model: Annotated[str, typer.Option(help="The backbone: a directory, a packaged model's name or a hub id.")],
    data: Annotated[Path, typer.Option(help="A folder in SentEval's layout, for the STS sets.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Results, and runs to resume.", metavar="DIR")],
    seeds: Annotated[str, typer.Option(help="Several seeds, or nothing is significant.", metavar="N,N,...")] = "42,1,2",
    text: Annotated[str | None, typer.Option(help="Sentences, one a line.", metavar="FILE")] = None,
    documents: Annotated[str | None, typer.Option(help="Sentences, documents apart.", metavar="FILE")] = None,
    pairs: Annotated[str | None, typer.Option(help="NLI: premise, hypothesis, label.", metavar="FILE")] = None,
    triplets: Annotated[str | None, typer.Option(help="NLI: sent0, sent1, hard_neg.", metavar="FILE")] = None,
    scored: Annotated[str | None, typer.Option(help="Sentence pairs with gold scores.", metavar="FILE")] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--set", help="A key of every recipe; a row's own wins.", metavar="KEY=VALUE")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Training rows that each run sees, at any batch size.", metavar="N")
    ] = None,
    sts_text: Annotated[Literal["disk", "raw"], typer.Option(help="STS-B as SentEval tokenises it, or raw.")] = "disk",
    tasks: Annotated[
        Literal["STSB", "sts"], typer.Option(help="sts: the seven STS tasks and their average too.")
    ] = "STSB",
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of measured runs.")] = False,
) -> int:
    """Run grids of ablations on a backbone and print their tables beside the papers' figures."""
    from eval.ablations.grid import DataKind, check_files, read_grid

    named = dict(map(read_grid, grids))
    given: dict[DataKind, str | None] = {
        "text": text,
        "documents": documents,
        "nli_pairs": pairs,
        "nli_triplets": triplets,
        "scored_pairs": scored,
    }
    files = {kind: file for kind, file in given.items() if file is not None}
    check_files(named, files)
    numbers = _seeds(seeds)

    from eval.ablations.grid import Common
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


def _seeds(text: str) -> list[int]:
    """Seeds from their list.

    Raises:
        UserError: If it holds something else, or one seed twice.
    """
    seeds = text.replace(" ", "").split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: expected different whole numbers, such as 42,1,2")
    return [int(seed) for seed in seeds]


if __name__ == "__main__":
    sys.exit(main())
