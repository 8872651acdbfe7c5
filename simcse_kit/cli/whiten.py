"""`simcse-whiten`: fit a whitening on a file of texts, and write the whitened model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simcse_kit.cli.common import (
    AllowPickleOption,
    ColumnOption,
    DeviceOption,
    MaxLengthOption,
    ModelArgument,
    PoolingOption,
    command_app,
    open_encoder,
    read_texts,
    run,
)
from simcse_kit.output import check_new_directory, new_directory

app = command_app()


@app.command()
def whiten(
    model: ModelArgument,
    source: Annotated[
        Path,
        typer.Argument(
            help="The texts to fit on: .txt (one a line), .csv, .tsv, .jsonl (each also .gz, .xz) or .parquet. Blank "
            "ones are left out.",
            metavar="TEXTS",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The whitened model: a directory, new or empty.", metavar="DIR"),
    ],
    dimensions: Annotated[
        int | None,
        typer.Option(
            "--dim",
            help="Keep the first K dimensions, those of the largest variance; by default all in which the texts vary.",
            metavar="K",
        ),
    ] = None,
    column: ColumnOption = None,
    pooling: PoolingOption = None,
    max_length: MaxLengthOption = None,
    device: DeviceOption = None,
    allow_pickle: AllowPickleOption = False,
) -> None:
    """Give a model's vectors mean 0 and identity covariance on a set of texts (Su et al. 2021).

    The whitened model does not bring its vectors to unit length. It knows the texts that it was fitted on as a trained
    model knows its training text: its figures say so where they are an evaluation's.
    """
    from simcse_kit.data.overlap import fingerprints, read_fingerprints, write_fingerprints

    check_new_directory(output)
    texts = [text for text in read_texts(source, column) if text.strip()]
    encoder = open_encoder(
        model, pooling=pooling, max_length=max_length, device=device, dtype=None, allow_pickle=allow_pickle
    )
    from simcse_kit import whitening  # imports torch: by now the model has been opened, and said to be

    whitened = whitening.whiten(encoder, texts, dimensions, show_progress=sys.stderr.isatty())
    with new_directory(output) as temporary:
        whitened.save_pretrained(temporary)
        write_fingerprints(temporary, fingerprints([texts]), read_fingerprints(Path(encoder.source).expanduser()))
    print(f"{output}: {encoder.dimension} -> {whitened.dimension} dimensions, whitened on {len(texts)} texts")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
