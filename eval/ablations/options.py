"""Options that the commands which run grids have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simcse_kit.errors import UserError

ModelOption = Annotated[str, typer.Option(help="The backbone: a directory, a packaged model's name or a hub id.")]
DataOption = Annotated[Path, typer.Option(help="A folder in SentEval's layout, for the STS sets.", metavar="DIR")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Results, and runs to resume.", metavar="DIR")]
SeedsOption = Annotated[str, typer.Option(help="Several seeds, or nothing is significant.", metavar="N,N,...")]
TextOption = Annotated[str | None, typer.Option(help="Sentences, one a line.", metavar="FILE")]
DocumentsOption = Annotated[str | None, typer.Option(help="Sentences, documents apart.", metavar="FILE")]
PairsOption = Annotated[str | None, typer.Option(help="NLI: premise, hypothesis, label.", metavar="FILE")]
TripletsOption = Annotated[str | None, typer.Option(help="NLI: sent0, sent1, hard_neg.", metavar="FILE")]
ScoredOption = Annotated[str | None, typer.Option(help="Sentence pairs with gold scores.", metavar="FILE")]
BudgetOption = Annotated[
    list[str] | None, typer.Option("--set", help="A key of every recipe; a row's own wins.", metavar="KEY=VALUE")
]
RowsOption = Annotated[
    int | None, typer.Option(min=1, help="Training rows that each run sees, at any batch size.", metavar="N")
]
KeepModelsOption = Annotated[bool, typer.Option("--keep-models", help="Keep the weights of measured runs.")]


def parse_seeds(text: str) -> list[int]:
    """Seeds from their list.

    Raises:
        UserError: If it holds something else, or one seed twice.
    """
    seeds = text.replace(" ", "").split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: expected different whole numbers, such as 42,1,2")
    return [int(seed) for seed in seeds]
