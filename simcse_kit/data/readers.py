"""Training text by column, from wherever a recipe's ``data.train`` says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from simcse_kit.data.files import iter_rows, sha256_of_files
from simcse_kit.data.hub import fetch_file, load_split, split_rows
from simcse_kit.data.rows import Row, as_label, as_text, sha256_of_rows
from simcse_kit.data.senteval import senteval_folders
from simcse_kit.data.sts_texts import STS_TEXTS, sts_texts
from simcse_kit.errors import UserError, one_line

Columns = dict[str, list[str]]
"""Texts by column name, in the order asked for; all columns are equally long."""

Source = str | Path | Sequence[str | Path]
"""File, glob, ``hf://datasets/owner/name@revision/file``, ``hub:owner/name:split``, ``scenes``, ``sts_texts``, or a
list of these."""

SCENES = "scenes"


def read_columns(
    source: Source, columns: Sequence[str], *, limit: int | None = None, labels: Collection[str] = ()
) -> Columns:
    """Read columns of text, several sources one after the other.

    Files are .txt (one sentence a line), .csv, .tsv, .jsonl or .ndjson, each also with .gz or .xz, and .parquet. Those
    of a glob come sorted by name. ``scenes`` is the built-in training set: one column (of any name) gives sentences,
    two anchor and positive, three anchor, positive and hard negative.

    Args:
        source: where the rows are.
        columns: names of the columns, each once; for .txt and ``scenes`` their number counts and not their names.
        limit: read no more than the first ``limit`` rows, and no further into the files.
        labels: those of ``columns`` that hold class labels: integers are allowed there and returned as digits.

    Returns:
        One list of strings a column. Empty strings are kept.

    Raises:
        UserError: for a source that is missing, unreadable or empty, a missing column, and a cell that is null or no
            text; the message names file, row and column.
    """
    if len(set(columns)) < len(columns):
        raise UserError(f"a column is named twice: {', '.join(columns)}")
    read: Columns = {column: [] for column in columns}
    texts = list(read.values())
    cell_of = [as_label if column in labels else as_text for column in columns]
    for name in expand(source):
        before = len(texts[0])
        left = None if limit is None else limit - before
        for row in islice(_rows(name, columns, left), left):
            for column, check, cell, text in zip(columns, cell_of, row.cells, texts, strict=True):
                text.append(check(row, column, cell))
        if len(texts[0]) == limit:
            break
        if len(texts[0]) == before:
            raise UserError(f"{name} has no rows")
    return read


def data_sha256(source: Source) -> dict[str, str]:
    """Return a hash for everything that a source resolves to.

    Returns:
        ``{name: sha256}``. For a file, local or fetched, the hash of its bytes as they lie on disk, which ``sha256sum``
        prints too; for a split on the hub, of all its rows; for the scenes, of the source files that generate them.

    Raises:
        UserError: for a source that is missing or out of reach.
    """
    return {str(name): _sha256(name) for name in expand(source)}


def expand(source: Source) -> list[str | Path]:
    """Return the files and the named data sets that a source stands for: a ``Path`` for every local file.

    Raises:
        UserError: for a file that is not there, a glob without a match, a directory, and an empty list.
    """
    if not isinstance(source, str | Path):
        if not source:
            raise UserError("the list of data files is empty")
        return list(chain.from_iterable(expand(item) for item in source))
    if isinstance(source, str) and (source in (SCENES, STS_TEXTS) or source.startswith(("hf://", "hub:"))):
        return [source]
    path = Path(source).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the files in it, as in {path / '*.txt'}")
    if path.exists():
        return [path]
    if not any(character in str(path) for character in "*?["):
        raise UserError(f"there is no file {path} (looked for in {Path.cwd()})")
    base = Path(path.anchor)
    try:
        matches = sorted(match for match in base.glob(str(path.relative_to(base))) if match.is_file())
    except ValueError as error:  # what Python's globs do not know
        raise UserError(f"{path}: {one_line(error)}; all folders below are **/*.txt") from None
    if not matches:
        raise UserError(f"no file matches {path} (looked for in {Path.cwd()})")
    return list(matches)


def _rows(name: str | Path, columns: Sequence[str], limit: int | None) -> Iterator[Row]:
    """Yield a source's rows; only the scenes, which are made all at once, need to know how many will be read."""
    if name == SCENES:
        return _scene_rows(columns, limit)
    if name == STS_TEXTS:
        return _sts_rows(columns)
    if isinstance(name, Path):
        return iter_rows(name, columns)
    if name.startswith("hub:"):
        return split_rows(name, load_split(name), columns)
    return iter_rows(fetch_file(name), columns)


def _scene_rows(columns: Sequence[str], limit: int | None) -> Iterator[Row]:
    from simcse_kit.data.scenes import scene_sentences, scene_triplets

    cells: Iterator[tuple[str, ...]]
    match len(columns):
        case 1:
            cells = ((sentence,) for sentence in scene_sentences("train", limit=limit))
        case 2 | 3:
            cells = (triplet[: len(columns)] for triplet in scene_triplets("train", limit=limit))
        case count:
            raise UserError(f"scenes has 1, 2 or 3 columns (sentence; anchor, positive; hard negative), not {count}")
    return (Row(SCENES, number, None, row) for number, row in enumerate(cells, start=1))


def _sts_rows(columns: Sequence[str]) -> Iterator[Row]:
    if len(columns) != 1:
        raise UserError(f"{STS_TEXTS} has one column, its sentences, not {len(columns)}")
    return (Row(STS_TEXTS, number, None, (text,)) for number, text in enumerate(sts_texts(senteval_folders()), start=1))


def _sha256(name: str | Path) -> str:
    if name == SCENES:
        from simcse_kit.data import scenes

        return sha256_of_files(*sorted(path for path in Path(scenes.__file__).parent.iterdir() if path.is_file()))
    if name == STS_TEXTS:
        return sha256_of_rows(row.cells for row in _sts_rows(["text"]))
    if isinstance(name, Path):
        return sha256_of_files(name)
    if name.startswith("hub:"):
        dataset = load_split(name)
        return sha256_of_rows(row.cells for row in split_rows(name, dataset, dataset.column_names))
    return sha256_of_files(fetch_file(name))
