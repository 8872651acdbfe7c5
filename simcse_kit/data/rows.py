"""One row of a table and the checks on its cells, whatever the format it comes from."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from simcse_kit.errors import UserError


class Row(NamedTuple):
    """One data row, with what an error message needs to point at it.

    Attributes:
        source: the file, or the name of the data set.
        number: 1-based count of data rows; a header is not one.
        line: 1-based line of a text file, None where there are no lines (parquet, the hub).
        cells: the values of the columns asked for, in the order asked for.
    """

    source: str
    number: int
    line: int | None
    cells: Sequence[object]

    @property
    def where(self) -> str:
        """The row's place, as it begins an error message."""
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.source}, row {self.number}{line}"


def as_text(row: Row, column: str, value: object) -> str:
    """Return a cell that must be a string; an empty one is a string.

    Raises:
        UserError: for null, for any other type, and for text that has no UTF-8 form (half of a surrogate pair).
    """
    if not isinstance(value, str):
        raise UserError(f"{row.where}, column {column!r}: {_describe(value)}, where a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON's \ud83d without its second half; tokenizers refuse such a string
        raise UserError(f"{row.where}, column {column!r}: half of a surrogate pair, which is no valid text") from None
    return value


def as_label(row: Row, column: str, value: object) -> str:
    """Return a class label: a string as it is, an integer as its decimal digits.

    Raises:
        UserError: for a cell that is neither.
    """
    return str(value) if type(value) is int else as_text(row, column, value)


def as_number(row: Row, column: str, value: object) -> float:
    """Return a cell that must be a finite number, or text that spells one.

    Raises:
        UserError: for anything else.
    """
    if type(value) in (int, float, str):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise UserError(f"{row.where}, column {column!r}: {_describe(value)}, where a finite number is needed")


def require_columns(where: str, columns: Sequence[str], present: Sequence[str]) -> None:
    """Check that a table has the columns asked for.

    Args:
        where: what begins the error message: a file, or a row of it.
        columns: the names asked for.
        present: the names there are.

    Raises:
        UserError: naming the first column that is missing, the closest of those there are, and all of them.
    """
    for column in columns:
        if column not in present:
            known = ", ".join(present)
            raise UserError(f"{where}: no column {column!r}{did_you_mean(column, present)}; its columns are: {known}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or nothing where none is close."""
    lowered = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


def arrow_rows(source: str, batches: Iterable[Any], columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of Arrow tables or record batches.

    Args:
        source: the name that rows carry.
        batches: ``pyarrow.RecordBatch`` or ``pyarrow.Table`` objects.
        columns: the columns wanted, each present in every batch.
    """
    number = 0
    for batch in batches:
        for cells in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
            number += 1
            yield Row(source, number, None, cells)


def sha256_of_rows(rows: Iterable[Sequence[object]]) -> str:
    """Return the SHA-256 of rows that lie in no file of their own: of one JSON array a line."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row), ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def _describe(value: object) -> str:
    """Name a cell that is not what it should be: its value and its JSON-like type."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
