"""The training rows: texts by column, or tokens prepared before, and what is known of each row beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from simcse_kit.batching import TokenIds
from simcse_kit.data.documents import WINDOWS, document_file, document_lines, positives_from_documents
from simcse_kit.data.nli import HARD_NEGATIVES, classes_of_pairs, tuples_from_pairs
from simcse_kit.data.overlap import FINGERPRINTS_FILE, Fingerprints, fingerprints, read_fingerprints
from simcse_kit.data.readers import expand, read_columns
from simcse_kit.data.sts import load_evaluation
from simcse_kit.data.tokens import TokenFiles, TokenRecord, TokenStream, read_record, vocabulary_sha256
from simcse_kit.errors import UserError
from simcse_kit.objectives.settings import CosineRegressionSettings, PooledObjectiveSection
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.sections import DataSection

# Of the first row, what --check shows.
_SHOWN = 60
# Far more classes than there are uses for; what is beyond is something else's number.
_LARGEST_CLASS = 10**6


class Rows(Protocol):
    """Training rows, whatever they are made of."""

    @property
    def labels(self) -> Tensor | None:
        """Class ids (int64) or gold scores (float32), [rows]; None where rows have no label."""

    def __len__(self) -> int: ...

    def token_ids(
        self, rows: Sequence[int], text: int, tokenize: Callable[[list[str]], list[list[int]]]
    ) -> Sequence[TokenIds]:
        """Token ids of one text of some rows; ``tokenize`` makes them where the rows are still text."""

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the text, [texts, columns]."""

    @property
    def summary(self) -> str:
        """What the rows are like, in a few words."""


@dataclass(frozen=True)
class TrainingRows:
    """Texts by column, and what is known of each row beside them.

    Attributes:
        texts: For each column the text of every row; all equally long.
        labels: Class ids (int64) or gold scores (float32), [rows]; None where rows have no label.
    """

    texts: tuple[list[str], ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts[0])

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the text, [rows, columns]."""
        return fingerprints(self.texts)

    def token_ids(
        self, rows: Sequence[int], text: int, tokenize: Callable[[list[str]], list[list[int]]]
    ) -> Sequence[TokenIds]:
        """Token ids of one text of some rows."""
        return tokenize([self.texts[text][row] for row in rows])

    @property
    def summary(self) -> str:
        """The texts of the first row."""
        first = dict.fromkeys(column[0] for column in self.texts)
        return "the first: " + " | ".join(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…" for text in first)


class TokenRows:
    """Rows of one length, cut from documents that stand end to end; mapped into memory and never there as text.

    A row may begin and end in the middle of a document, and hold the end of one and the beginning of the next. The
    tokens that are left at the end, fewer than a row has, are not used.

    Attributes:
        length: Tokens of a row, the two at its ends included.
    """

    labels: Tensor | None = None

    def __init__(self, directory: Path, record: TokenRecord, part: TokenFiles, *, max_length: int) -> None:
        """Map a part of a directory of tokens.

        Args:
            directory: The directory.
            record: Its record.
            part: The documents to train on, or those held out.
            max_length: Tokens of a row, the two at its ends included.

        Raises:
            UserError: If the files are damaged, or hold not even one row.
        """
        self._directory, self._record, self._part = directory, record, part
        self._stream = TokenStream(directory, part)
        self.length = max_length
        if not len(self):
            raise UserError(f"{directory}: {part.tokens:,} tokens do not fill one row of {max_length}")

    def __len__(self) -> int:
        return len(self._stream) // (self.length - 2)

    def token_ids(
        self, rows: Sequence[int], text: int = 0, tokenize: Callable[[list[str]], list[list[int]]] | None = None
    ) -> list[TokenIds]:
        """Token ids of some rows, which have one text and need no tokenizer."""
        inner = self.length - 2
        found = np.empty((len(rows), self.length), dtype=np.int64)
        found[:, 0], found[:, -1] = self._record.first, self._record.last
        for row, place in zip(rows, found, strict=True):
            place[1:-1] = self._stream.span(row * inner, (row + 1) * inner)
        return list(found)

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the paragraphs, [paragraphs, 1]."""
        found = read_fingerprints(self._directory)
        if found is None:
            raise UserError(f"{self._directory}: {FINGERPRINTS_FILE} is missing; prepare the text again")
        return found

    @property
    def summary(self) -> str:
        """How many tokens of how many documents they are."""
        return f"of {self.length} tokens, packed from the {self._part.tokens:,} of {self._part.documents:,} documents"


def open_rows(recipe: Recipe) -> Rows:
    """The training rows of a recipe: tokens prepared before, or text, read whole.

    Raises:
        UserError: If a file, column or cell is not as it should be.
    """
    directory = recipe.data.tokens
    if directory is None:
        return read_rows(recipe.data, recipe.seed)
    record = read_record(directory)
    return TokenRows(directory, record, record.train, max_length=recipe.model.max_length)


def open_held_out(recipe: Recipe) -> TokenRows | None:
    """Rows of the documents held out from a recipe's training text; None where there are none.

    Raises:
        UserError: If the files are damaged, or hold not even one row.
    """
    directory = recipe.data.tokens
    record = None if directory is None else read_record(directory)
    if directory is None or record is None or not record.held_out.documents:
        return None
    try:
        return TokenRows(directory, record, record.held_out, max_length=recipe.model.max_length)
    except UserError as error:
        raise UserError(
            f"{error}: these are the documents held out; prepare the text with a larger --held-out, or --held-out 0"
        ) from None


def read_rows(data: DataSection, seed: int) -> TrainingRows:
    """Read the training text of a recipe, whole.

    Raises:
        UserError: If a file, column or cell is not as it should be.
    """
    match data.convert:
        case "nli_triplets" | "nli_quadruplets":
            labelled, negatives = _read_labelled(data), HARD_NEGATIVES[data.convert]
            with _errors_name(data.train):
                return TrainingRows(_columns(tuples_from_pairs(*labelled, negatives, seed=seed)))
        case "nli_pairs":
            labelled = _read_labelled(data)
            with _errors_name(data.train):
                return _with_classes(*labelled)
        case "labelled_pairs":
            first, second, labels = _read_labelled(data)
            with _errors_name(data.train):
                return TrainingRows((first, second), torch.tensor(_integers(labels)))
        case "scored_pairs":
            return _scored_pairs(data)
        case "next_sentence" | "next_three_sentences":
            lines = document_lines(map(document_file, expand(data.train)))
            return TrainingRows(_columns(positives_from_documents(lines, WINDOWS[data.convert], seed=seed)))
        case None:
            return TrainingRows(tuple(read_columns(data.train, data.columns).values()))


def check_vocabulary(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """See that the recipe's tokens, if it has any, are those of a model.

    Raises:
        UserError: Else.
    """
    directory = recipe.data.tokens
    if directory is not None and read_record(directory).vocabulary_sha256 != vocabulary_sha256(tokenizer):
        raise UserError(
            f"data.train: {directory} holds tokens of another vocabulary than that of {recipe.model.name}; prepare the "
            f"text with --tokenizer {recipe.model.name}"
        )


def check_labels(rows: Rows, objectives: Sequence[PooledObjectiveSection]) -> None:
    """See that the rows' classes and gold scores are among those of the objectives that learn from them.

    Raises:
        UserError: Else, with the first row whose class or score is not.
    """
    for objective in objectives:
        if isinstance(objective, CosineRegressionSettings) and rows.labels is not None:
            beyond = ((rows.labels < 0) | (rows.labels > objective.max_score)).nonzero()
            if len(beyond):
                row = int(beyond[0])
                raise UserError(
                    f"data.train, row {row + 1}: score {rows.labels[row].item():g} is not between 0 and "
                    f"{objective.max_score:g}, the max_score of {objective.name}"
                )
        if objective.num_classes is not None and rows.labels is not None:
            beyond = (rows.labels >= objective.num_classes).nonzero()
            if len(beyond):
                row, last = int(beyond[0]), objective.num_classes - 1
                raise UserError(
                    f"data.train, row {row + 1}: class {int(rows.labels[row])} is none that {objective.name} has "
                    f"(0 to {last})"
                )


def _read_labelled(data: DataSection) -> tuple[list[str], list[str], list[str]]:
    first, second, labels = read_columns(data.train, data.columns, labels=data.columns[2:]).values()
    return first, second, labels


@contextmanager
def _errors_name(source: str | list[str]) -> Iterator[None]:
    """Within this context errors about rows say where the rows are from; they are counted over all files."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source if isinstance(source, str) else ', '.join(source)}: {error}") from None


def _columns(rows: Sequence[tuple[str, ...]]) -> tuple[list[str], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _with_classes(premises: list[str], hypotheses: list[str], labels: list[str]) -> TrainingRows:
    """NLI pairs with a gold label, and their classes."""
    classes = classes_of_pairs(labels)
    rows = [(p, h, c) for p, h, c in zip(premises, hypotheses, classes, strict=True) if c is not None]
    if not rows:
        raise UserError("data.convert: nli_pairs: no row has a gold label")
    first, second, ids = zip(*rows, strict=True)
    return TrainingRows((list(first), list(second)), torch.tensor(ids))


def _integers(labels: list[str]) -> list[int]:
    for row, label in enumerate(labels, start=1):
        if not label.strip().isdecimal() or int(label) > _LARGEST_CLASS:
            raise UserError(
                f"row {row}: {label!r} is no class; labelled_pairs needs integers from 0 to {_LARGEST_CLASS:,}"
            )
    return [int(label) for label in labels]


def _scored_pairs(data: DataSection) -> TrainingRows:
    """Pairs with gold scores, of each source in turn."""
    sources = expand(data.train)
    subsets = [subset for source in sources for subset in load_evaluation(source, task="train", split="train").subsets]
    first = [text for subset in subsets for text in subset.sentences1]
    second = [text for subset in subsets for text in subset.sentences2]
    scores = [score for subset in subsets for score in subset.scores.tolist()]
    return TrainingRows((first, second), torch.tensor(scores, dtype=torch.float32))
