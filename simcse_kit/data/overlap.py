"""How much of an evaluation's text a model was trained on.

Public training sets hold sentences of public evaluation sets (image captions above all, and ConSERT trains on the
evaluation sentences on purpose), so a run keeps fingerprints of its training text, and every later evaluation of the
model counts what it has seen. A fingerprint is 64 bits of BLAKE2b of the text's letters and digits, case-folded:
tokenisation, case and punctuation, in which copies of the public sets differ, do not hide a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_kit.errors import UserError, one_line
from simcse_kit.output import replacing

Fingerprints = NDArray[np.uint64]

FINGERPRINTS_FILE = "training_text.npy"
"""The file of a run directory that holds them, [rows, columns]."""

_NO_TEXT = 0


@dataclass(frozen=True)
class Overlap:
    """What a training set and an evaluation set have in common.

    Attributes:
        train_rows: Training rows with at least one of the evaluation's sentences.
        of_rows: All training rows.
        sentences: Distinct sentences of the evaluation that occur in the training text.
        of_sentences: All of its distinct sentences.
    """

    train_rows: int
    of_rows: int
    sentences: int
    of_sentences: int


def fingerprints(columns: Sequence[Sequence[str]]) -> Fingerprints:
    """Fingerprint training text.

    Args:
        columns: The texts of each column, all equally long.

    Returns:
        Fingerprints, [rows, columns]; 0 for a text without a letter or digit, which matches nothing.
    """
    table = np.empty((len(columns[0]), len(columns)), dtype=np.uint64)
    for i, column in enumerate(columns):
        table[:, i] = [_fingerprint(text) for text in column]
    return table


def overlap(train: Fingerprints, sentences: Iterable[str]) -> Overlap:
    """Count what a training set shares with the sentences of an evaluation.

    Args:
        train: From ``fingerprints``, [rows, columns].
        sentences: The evaluation's; repeated ones count once.
    """
    distinct = np.unique(fingerprints([list(sentences)]))
    seen = distinct[distinct != _NO_TEXT]
    rows = np.isin(train, seen).any(axis=1)
    return Overlap(int(rows.sum()), len(train), int(np.isin(seen, train).sum()), len(distinct))


def write_fingerprints(directory: Path, own: Fingerprints, base: Fingerprints | None) -> None:
    """Write the fingerprints of a run's training text, below those of the model it started from, if it has any."""
    tables = [own] if base is None else [base, own]
    if base is not None and np.array_equal(base[-len(own) :], own):
        tables = [base]  # a run on the text that its model was trained on last
    columns = max(table.shape[1] for table in tables)
    padded = [np.pad(table, ((0, 0), (0, columns - table.shape[1])), constant_values=_NO_TEXT) for table in tables]
    with replacing(directory / FINGERPRINTS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(padded))


def read_fingerprints(directory: Path) -> Fingerprints | None:
    """The fingerprints of the text that a model directory's model was trained on; None if it does not say.

    Raises:
        UserError: If its file is damaged, or not one of ours.
    """
    path = directory / FINGERPRINTS_FILE
    if not path.is_file():
        return None
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as fingerprints of training text: {one_line(error)}") from error
    if not isinstance(table, np.ndarray) or table.dtype != np.uint64 or table.ndim != 2:
        raise UserError(f"{path}: holds no fingerprints of training text")
    return table


def _fingerprint(text: str) -> int:
    letters = "".join(filter(str.isalnum, text.casefold()))
    return int.from_bytes(blake2b(letters.encode(errors="surrogatepass"), digest_size=8).digest()) if letters else 0
