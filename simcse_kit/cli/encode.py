"""`simcse-encode`: turn a file of texts into a file of vectors, row by row."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcse_kit.cli.common import (
    DeviceOption,
    DtypeOption,
    MaxLengthOption,
    PoolingOption,
    command_app,
    open_encoder,
    run,
)
from simcse_kit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Writer = Callable[[Path, list[str], NDArray[np.float32]], None]

_DEFAULT_COLUMN = "text"

app = command_app()


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="A directory, a packaged model's name or a hub id.", metavar="MODEL")],
    source: Annotated[
        Path,
        typer.Argument(
            help="The texts: .txt (one a line), .csv, .tsv, .jsonl (each also .gz) or .parquet.", metavar="INPUT"
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The vectors: .npy (float32, rows x dimensions) or .parquet (columns text and embedding). Row i "
            "belongs to row i of the input, blank lines of a .txt included. A file that is there is replaced.",
            metavar="FILE",
        ),
    ],
    column: Annotated[
        str | None,
        typer.Option(help="The input's column of texts; by default 'text', or the only one there is.", metavar="NAME"),
    ] = None,
    pooling: PoolingOption = None,
    max_length: MaxLengthOption = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Bring vectors to unit length, or leave them as they are; by default as the model says.",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Encode the texts of a file into vectors."""
    from simcse_kit.output import check_output, replacing

    write = _writer(output)
    check_output(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the input itself; name another file")
    texts = read_texts(source, column)
    encoder = open_encoder(model, pooling=pooling, max_length=max_length, device=device, dtype=dtype)
    start = time.perf_counter()
    vectors = encoder.encode(texts, normalize=normalize, show_progress=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    with replacing(output) as temporary:
        write(temporary, texts, vectors)
    rows, dimensions = vectors.shape
    print(f"{output}: {rows} rows x {dimensions} dimensions, {seconds:.1f} s ({rows / seconds:.0f} sentences/s)")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def read_texts(path: Path, column: str | None) -> list[str]:
    """Read a file's texts; unlike training data, the blank lines of a .txt are rows, so that rows keep their number.

    Raises:
        UserError: If the file cannot be read, has no rows or not the column, or the column has a cell that is no text.
    """
    from simcse_kit.data.files import column_names, format_of, read_lines
    from simcse_kit.data.readers import read_columns

    if format_of(path) != ".txt":
        column = column or _sole_column(path, column_names(path))
        return read_columns(path, [column])[column]
    if column is not None:
        raise UserError(f"--column {column}: {path} is plain text and has no columns; leave --column out")
    texts = list(read_lines(path))
    if not texts:
        raise UserError(f"{path} has no rows")
    return texts


def _sole_column(path: Path, columns: Sequence[str]) -> str:
    """The column of texts where none was named."""
    if _DEFAULT_COLUMN in columns:
        return _DEFAULT_COLUMN
    if len(columns) > 1:
        raise UserError(f"{path}: which column holds the texts? Name it with --column: {', '.join(columns)}")
    return columns[0]


def _writer(output: Path) -> Writer:
    writers: dict[str, Writer] = {".npy": _write_npy, ".parquet": _write_parquet}
    suffix = output.suffix.lower()
    if suffix not in writers:
        raise UserError(f"-o {output}: vectors are written as {' or '.join(writers)}; end the name in one of them")
    return writers[suffix]


def _write_npy(path: Path, texts: list[str], vectors: NDArray[np.float32]) -> None:
    import numpy as np

    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.save(file, vectors)


def _write_parquet(path: Path, texts: list[str], vectors: NDArray[np.float32]) -> None:
    import pyarrow
    import pyarrow.parquet

    embeddings = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "embedding": embeddings}), path)


if __name__ == "__main__":
    sys.exit(main())
