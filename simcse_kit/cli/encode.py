"""`simcse-encode`: turn a file of texts into a file of vectors, row by row."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simcse_kit.cli.common import (
    AllowPickleOption,
    ColumnOption,
    DeviceOption,
    DtypeOption,
    MaxLengthOption,
    ModelArgument,
    PoolingOption,
    command_app,
    open_encoder,
    read_texts,
    run,
)
from simcse_kit.errors import UserError
from simcse_kit.quantization import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Writer = Callable[[Path, list[str], NDArray[Any]], None]

app = command_app()


@app.command()
def encode(
    model: ModelArgument,
    source: Annotated[
        Path,
        typer.Argument(
            help="The texts: .txt (one a line), .csv, .tsv, .jsonl (each also .gz, .xz) or .parquet.", metavar="INPUT"
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The vectors: .npy (rows x dimensions) or .parquet (columns text and embedding). Row i "
            "belongs to row i of the input, blank lines of a .txt included. A file that is there is replaced.",
            metavar="FILE",
        ),
    ],
    column: ColumnOption = None,
    pooling: PoolingOption = None,
    max_length: MaxLengthOption = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Bring vectors to unit length, or leave them as they are; by default as the model says.",
        ),
    ] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first so many dimensions (Matryoshka models).", metavar="N")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="What vectors are stored in; binary and ubinary hold eight dimensions a byte.")
    ] = "float32",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    allow_pickle: AllowPickleOption = False,
) -> None:
    """Encode the texts of a file into vectors."""
    from simcse_kit.output import check_output, replacing

    write = _writer(output)
    check_output(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the input itself; name another file")
    texts = read_texts(source, column)
    encoder = open_encoder(
        model, pooling=pooling, max_length=max_length, device=device, dtype=dtype, allow_pickle=allow_pickle
    )
    start = time.perf_counter()
    vectors = encoder.encode(
        texts, normalize=normalize, show_progress=sys.stderr.isatty(), truncate_dim=truncate_dim, precision=precision
    )
    seconds = time.perf_counter() - start
    with replacing(output) as temporary:
        write(temporary, texts, vectors)
    rows, dimensions = vectors.shape
    print(f"{output}: {rows} rows x {dimensions} dimensions, {seconds:.1f} s ({rows / seconds:.0f} sentences/s)")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def _writer(output: Path) -> Writer:
    writers: dict[str, Writer] = {".npy": _write_npy, ".parquet": _write_parquet}
    suffix = output.suffix.lower()
    if suffix not in writers:
        raise UserError(f"-o {output}: vectors are written as {' or '.join(writers)}; end the name in one of them")
    return writers[suffix]


def _write_npy(path: Path, texts: list[str], vectors: NDArray[Any]) -> None:
    import numpy as np

    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.save(file, vectors)


def _write_parquet(path: Path, texts: list[str], vectors: NDArray[Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    embeddings = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "embedding": embeddings}), path)


if __name__ == "__main__":
    sys.exit(main())
