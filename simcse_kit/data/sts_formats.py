"""The file formats of scored sentence pairs: SemEval's, STS-B's, SICK's, and tables with named columns.

None of them quotes: a quotation mark is a character of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from simcse_kit.data.files import format_of, read_lines, tab_separated
from simcse_kit.data.rows import Row, as_number, as_text
from simcse_kit.errors import UserError

Pair = tuple[str, str, float]
"""(sentence 1, sentence 2, gold score)"""

_SENTENCE1 = ("sentence1", "sentence_A")
_SENTENCE2 = ("sentence2", "sentence_B")
_SCORE = ("score", "similarity_score", "relatedness_score", "label")


def read_semeval(texts: Path, golds: Path) -> Iterator[Pair]:
    """Yield the annotated pairs of a SemEval subset (STS12-16).

    Args:
        texts: sentence 1 TAB sentence 2 on each line.
        golds: a score from 0 to 5 on each line, for the same line of ``texts``; a blank one means that the pair was
            not annotated, and it is dropped.

    Raises:
        UserError: if the files have unequal numbers of lines, or a line is malformed.
    """
    text_lines, gold_lines = list(read_lines(texts)), list(read_lines(golds))
    if len(text_lines) != len(gold_lines):
        raise UserError(f"{texts} has {len(text_lines)} lines, but its scores {golds} {len(gold_lines)}")
    for line, (text, gold) in enumerate(zip(text_lines, gold_lines, strict=True), start=1):
        if gold.strip():
            sentence1, sentence2 = tab_separated(texts, line, text, at_least=2)[:2]
            yield sentence1, sentence2, _score(golds, line, gold, lowest=0)


def read_stsb(path: Path) -> Iterator[Pair]:
    """Yield the pairs of an STS-B file: genre, file, year, id, score (0-5), sentence 1, sentence 2, and no header.

    Columns after these, which some rows of the released files have, name the licence of the text.

    Raises:
        UserError: for a malformed line.
    """
    for line, text in enumerate(read_lines(path), start=1):
        cells = tab_separated(path, line, text, at_least=7)
        yield cells[5], cells[6], _score(path, line, cells[4], lowest=0)


def read_sick(path: Path) -> Iterator[Pair]:
    """Yield the pairs of a SICK file: a header, then id, sentence A, sentence B, relatedness (1-5), entailment.

    Raises:
        UserError: for a malformed line.
    """
    for line, text in enumerate(read_lines(path), start=1):
        if line > 1:
            cells = tab_separated(path, line, text, at_least=4)
            yield cells[1], cells[2], _score(path, line, cells[3], lowest=1)


def has_stsb_layout(path: Path) -> bool:
    """Tell whether a file is STS-B's, by its first line; a table with named columns begins with their names."""
    if format_of(path) not in (".csv", ".tsv"):
        return False
    cells = next(read_lines(path), "").split("\t")
    return len(cells) >= 7 and math.isfinite(_number(cells[4]))


def pair_columns(where: str, present: Sequence[str]) -> tuple[str, str, str]:
    """Choose the columns of the two sentences and the score among those that a table has.

    Raises:
        UserError: if there is none for one of them.
    """
    first, second, score = (
        next((name for name in names if name in present), None) for names in (_SENTENCE1, _SENTENCE2, _SCORE)
    )
    if first is None or second is None or score is None:
        raise UserError(
            f"{where}: scored pairs need columns sentence1, sentence2 and score; its columns are: {', '.join(present)}"
        )
    return first, second, score


def read_table(rows: Iterable[Row], columns: tuple[str, str, str]) -> Iterator[Pair]:
    """Yield the pairs of a table.

    Args:
        rows: with the cells of ``columns``.
        columns: the names that ``pair_columns`` chose.

    Raises:
        UserError: for a sentence that is no text and a score that is no finite number.
    """
    first, second, score = columns
    for row in rows:
        cell1, cell2, cell3 = row.cells
        yield as_text(row, first, cell1), as_text(row, second, cell2), as_number(row, score, cell3)


def _score(path: Path, line: int, text: str, *, lowest: int) -> float:
    score = _number(text)
    if not lowest <= score <= 5:
        raise UserError(f"{path}, line {line}: the gold score {text!r} is no number from {lowest} to 5")
    return score


def _number(text: str) -> float:
    """Return the number that a text spells, NaN if it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
