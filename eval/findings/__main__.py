"""Run the papers' findings on a backbone: ``python -m eval.findings``.

    python -m eval.findings --model simcse-kit/mini --text sentences.txt --documents documents.txt --pairs nli.jsonl \
        --triplets triplets.csv --scored STS/STSBenchmark/sts-train.csv --data SENTEVAL \
        --seeds 1,2,3,4,5 --rows 200000 -o runs/findings

Measures the backbone untrained and whitened, then runs every grid that a finding of ``findings.yaml`` compares rows of,
all measured on the seven STS tasks, and prints which findings hold. What is complete is passed over and what was
interrupted goes on when the command is run again. The results are ``DIR/untrained.json`` and ``DIR/GRID.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

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
from simcse_kit.errors import UserError

app = command_app()


@app.command()
def findings(
    model: ModelOption,
    data: DataOption,
    output: OutputOption,
    grids: Annotated[
        list[str] | None, typer.Argument(metavar="[GRID ...]", help="Only these; by default all that findings need.")
    ] = None,
    seeds: SeedsOption = "1,2,3,4,5",
    text: TextOption = None,
    documents: DocumentsOption = None,
    pairs: PairsOption = None,
    triplets: TripletsOption = None,
    scored: ScoredOption = None,
    budget: BudgetOption = None,
    rows: RowsOption = None,
    keep_models: KeepModelsOption = False,
) -> int:
    """Run the papers' findings on a backbone and print which of them hold."""
    from eval.ablations.grid import Common, check_files, read_grid, training_files
    from eval.findings.claims import UNTRAINED, read_findings

    claims = read_findings()
    named = dict(map(read_grid, grids)) if grids else claims.grids
    files = training_files(text, documents, pairs, triplets, scored)
    check_files(named, files)
    if pairs is None:
        raise UserError("--pairs FILE is missing; on its sentences the untrained encoder is whitened")
    numbers = parse_seeds(seeds)

    from eval.ablations.runs import Sets
    from eval.ablations.study import Study
    from eval.findings.table import findings_table, untrained_table
    from eval.findings.untrained import measure_encoders
    from eval.findings.verdicts import read_backbone
    from eval.published import read_published

    common = Common(model, files, data, "disk", budget or [], rows)
    sets = Sets.load(data, text="disk", all_tasks=True)
    studies = [Study(name, grid, common, sets, output, numbers, keep_models) for name, grid in named.items()]
    for study in studies:
        study.check()
    output.mkdir(parents=True, exist_ok=True)
    published = read_published()
    untrained = measure_encoders(claims.untrained, common, sets, output / f"{UNTRAINED}.json")
    print(f"{untrained.model} without training\n\n{untrained_table(untrained, published)}\n", flush=True)
    complete = all(study.run() for study in studies)
    backbone = read_backbone(output)
    assert backbone is not None
    print(f"\nFindings, on {untrained.model}\n\n{findings_table(claims, backbone, published)}")
    return 0 if complete else EXIT_INTERRUPTED


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
