"""Rows of local files: plain text, csv, tsv, JSON lines (each also gzipped or xz-compressed) and parquet.

Read here and not by the ``datasets`` library, whose csv and text loaders contact a server even for local files. Text
is UTF-8, with or without a byte order mark; a line ends at LF or CR LF and at no other character, so that a Unicode
line separator inside a sentence does not cut it. Nothing is ever taken for a missing value: ``NA``, ``null`` and
``None`` are text.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simcse_kit.data.rows import Row, arrow_rows, require_columns
from simcse_kit.errors import UserError, one_line

_LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072
_PARQUET_BATCH = 4096  # rows decoded at a time
_HASH_CHUNK = 2**20  # bytes
_COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


def iter_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yield a file's rows, reading no further than they are consumed.

    Args:
        path: the file; its suffix names the format.
        columns: the columns wanted. A ``.txt`` file, one sentence a line, has one column, of any name; blank lines
            separate documents there and are no rows.

    Yields:
        Rows with the cells of ``columns``, of whatever type the file gives them: check them with ``as_text`` and
        its like.

    Raises:
        UserError: for a file that cannot be read (missing, a directory, of unknown format, corrupt, not UTF-8), a
            column it does not have, and a malformed line or row.
    """
    match format_of(path):
        case ".txt":
            return _text_rows(path, columns)
        case ".csv" | ".tsv":
            return _delimited_rows(path, columns)
        case ".parquet":
            return _parquet_rows(path, columns)
        case _:
            return _json_rows(path, columns)


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns; those of JSON lines are the keys of the first object.

    Raises:
        UserError: for a file that cannot be read or is empty.
    """
    match format_of(path):
        case ".txt":
            return ["text"]
        case ".csv" | ".tsv":
            return _header(path, _records(path))
        case ".parquet":
            with _parquet_file(path) as file:
                return list(file.schema_arrow.names)
        case _:
            for _, row in _json_objects(path):
                return list(row)
            raise UserError(f"{path} is empty")


def format_of(path: Path) -> str:
    """Return the format that a file's name states, as a suffix: ``.csv`` for ``data.CSV.gz``.

    Raises:
        UserError: for a suffix that names no format.
    """
    suffix = path.suffix.lower()
    compressed = suffix in _COMPRESSED
    if compressed:
        suffix = Path(path.stem).suffix.lower()
    if suffix in (".txt", ".csv", ".tsv", ".jsonl", ".ndjson") or (suffix == ".parquet" and not compressed):
        return suffix
    raise UserError(
        f"{path}: the suffix names no format; known are .txt, .csv, .tsv, .jsonl, .ndjson (each with .gz or .xz too), "
        ".parquet"
    )


def read_lines(path: Path, *, keep_ends: bool = False, encoding: str = "UTF-8") -> Iterator[str]:
    """Yield the lines of a text file, decompressed where its name ends in ``.gz`` or ``.xz``.

    Args:
        path: the file.
        keep_ends: leave the LF or CR LF at the end of each line.
        encoding: how the characters are written.

    Raises:
        UserError: for a file that cannot be opened, bytes that are not of the encoding (with the line), and broken
            gzip or xz.
    """
    number = 1
    try:
        with _COMPRESSED.get(path.suffix.lower(), Path.open)(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                line = raw.decode(encoding)
                yield line if keep_ends else line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}, line {number}: byte 0x{byte:02x} is not {encoding}; convert the file to {encoding}"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = path.suffix.lower().replace(".gz", ".gzip").removeprefix(".")
        raise UserError(f"{path} is no complete {kind} file: {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def tab_separated(path: Path, line: int, text: str, *, at_least: int) -> list[str]:
    """Split a line into its cells, of which so many are needed.

    Raises:
        UserError: if there are fewer.
    """
    cells = text.split("\t")
    if len(cells) < at_least:
        raise UserError(f"{path}, line {line}: {at_least} tab-separated columns are needed, there are {len(cells)}")
    return cells


def sha256_of_files(*paths: Path) -> str:
    """Return the SHA-256 of files' bytes as they lie on disk, one after the other: ``cat PATHS | sha256sum``.

    Raises:
        UserError: for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise _unreadable(path, error) from error
    return digest.hexdigest()


def _text_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    if len(columns) != 1:
        names = ", ".join(columns)
        raise UserError(f"{path} is plain text, one sentence a line: it has one column, not {len(columns)} ({names})")
    lines = ((line, text) for line, text in enumerate(read_lines(path), start=1) if text.strip())
    for number, (line, text) in enumerate(lines, start=1):
        yield Row(str(path), number, line, [text])


def _delimited_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    records = _records(path)
    header = _header(path, records)
    require_columns(str(path), columns, header)
    positions = [header.index(column) for column in columns]
    for number, (line, cells) in enumerate(records, start=1):
        if len(cells) != len(header):
            row = Row(str(path), number, line, cells)
            lacking = f": column {header[len(cells)]!r} is absent" if len(cells) < len(header) else ""
            raise UserError(f"{row.where} has {len(cells)} cells, the header {len(header)}{lacking}")
        yield Row(str(path), number, line, [cells[position] for position in positions])


def _header(path: Path, records: Iterator[tuple[int, list[str]]]) -> list[str]:
    for _, header in records:
        return header
    raise UserError(f"{path} is empty")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of each csv or tsv record, header included, blank lines left out."""
    if format_of(path) == ".tsv":  # no quoting: the tab-separated files of the field carry bare quotation marks
        for line, text in enumerate(read_lines(path), start=1):
            if text:
                yield line, text.split("\t")
        return
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(read_lines(path, keep_ends=True), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: malformed csv ({error}); check the quotation marks") from error
        if cells:
            yield line, cells


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, (line, cells) in enumerate(_json_objects(path), start=1):
        row = Row(str(path), number, line, [cells.get(column) for column in columns])
        require_columns(str(path) if number == 1 else row.where, columns, list(cells))
        yield row


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line, object) of each line that is not blank."""
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line}: not JSON: {error.msg} at character {error.colno}") from error
        if not isinstance(cells, dict):
            raise UserError(f'{path}, line {line}: a JSON object is needed, as in {{"text": "..."}}')
        yield line, cells


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with _parquet_file(path) as file:
        require_columns(str(path), columns, file.schema_arrow.names)
        yield from arrow_rows(str(path), file.iter_batches(_PARQUET_BATCH, columns=list(columns)), columns)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """Open a parquet file; what goes wrong inside the block is said in one line."""
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no complete parquet file: {one_line(error)}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or one_line(error)}")
