"""`simcse-prepare`: text files to token ids on disk, for pre-training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simcse_kit.cli.common import command_app, run

app = command_app()


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Documents: .txt (also .gz, .xz), a paragraph a line, a blank line behind each document. Globs too.",
            metavar="TEXT ...",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Tokens and tokenizer: a directory, new or empty.", metavar="DIR")
    ],
    vocabulary_size: Annotated[
        int,
        typer.Option(
            "--vocab-size", min=100, help="Of the lower-cased WordPiece vocabulary learned here.", metavar="N"
        ),
    ] = 16_384,
    tokenizer: Annotated[
        str | None, typer.Option(help="Use the tokenizer of this model and learn none.", metavar="MODEL")
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="Share of documents to measure on, not to train on.", metavar="SHARE"),
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the documents.", metavar="N")] = 42,
) -> None:
    """Make token ids of text, once, for masked language modelling (recipes/pretrain-mini.yaml, adapt-mlm.yaml)."""
    from simcse_kit.data.preparation import prepare_tokens

    record = prepare_tokens(
        sources,
        output,
        vocabulary_size=vocabulary_size,
        tokenizer=tokenizer,
        held_out=held_out,
        seed=seed,
        quiet=not sys.stderr.isatty(),
    )
    print(
        f"{output}: {record.train.tokens:,} tokens of {record.train.documents:,} documents to train on, "
        f"{record.held_out.tokens:,} of {record.held_out.documents:,} held out, a vocabulary of "
        f"{record.vocabulary_size:,}"
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
