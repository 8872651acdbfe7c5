"""Text as token ids on disk, as ``simcse-prepare`` writes it once and training maps it into memory.

A directory holds a tokenizer, ``tokens.json``, numpy files of uint16 with the documents end to end, a separator behind
each, some documents held out in files of their own, and the fingerprints of the rest.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from simcse_kit.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.uint16]

RECORD = "tokens.json"
"""The file by which a directory of tokens is known."""
LARGEST_VOCABULARY = 2**16
"""Ids are stored in 16 bits."""

_SHARD_TOKENS = 2**24


class TokenFiles(BaseModel):
    """Documents end to end, in numbered files.

    Attributes:
        documents: How many.
        tokens: Theirs, a separator behind each document included.
        files: Names of the files in their order, each with its SHA-256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    tokens: int
    files: dict[str, str]


class TokenRecord(BaseModel):
    """What ``tokens.json`` says.

    Attributes:
        train: The documents to train on.
        held_out: Those to measure on.
        vocabulary_size: How many tokens the tokenizer knows.
        vocabulary_sha256: ``vocabulary_sha256`` of it.
        first: The token id that begins every input.
        last: The one that ends every input, and every document here.
        sources: The text files, each with the SHA-256 of its bytes.
        seed: Of the order of the documents, and of which are held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: TokenFiles
    held_out: TokenFiles
    vocabulary_size: int
    vocabulary_sha256: str
    first: int
    last: int
    sources: dict[str, str]
    seed: int


class TokenStream:
    """The tokens of numbered files as one sequence, mapped into memory and never read whole."""

    def __init__(self, directory: Path, part: TokenFiles) -> None:
        """Map the files.

        Raises:
            UserError: If one is missing, or not as ``tokens.json`` says.
        """
        self._shards = [_mapped(directory / name) for name in part.files]
        self._ends = list(accumulate(map(len, self._shards), initial=0))
        if len(self) != part.tokens:
            raise UserError(f"{directory}: its files hold {len(self):,} tokens, {RECORD} says {part.tokens:,}")

    def __len__(self) -> int:
        return self._ends[-1]

    def span(self, start: int, stop: int) -> Tokens:
        """The tokens from ``start`` to before ``stop``, from however many files."""
        number = bisect_right(self._ends, start) - 1
        parts = []
        while start < stop:
            begins, ends = self._ends[number : number + 2]
            parts.append(self._shards[number][start - begins : stop - begins])
            start, number = ends, number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def tokens_directory(source: object) -> Path | None:
    """The directory of tokens that a source of training text names, or None if it names something else."""
    if not isinstance(source, str | Path):
        return None
    try:
        directory = Path(source).expanduser()
        return directory if (directory / RECORD).is_file() else None
    except (OSError, RuntimeError):  # a name longer than file systems allow, or of nobody's home
        return None


def read_record(directory: Path) -> TokenRecord:
    """Read ``tokens.json``.

    Raises:
        UserError: If it is damaged, or not one of ours.
    """
    path = directory / RECORD
    try:
        return TokenRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: cannot be read as simcse-prepare writes it: {one_line(error)}") from error


def write_record(directory: Path, record: TokenRecord) -> None:
    """Write ``tokens.json``."""
    (directory / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


class TokenWriter:
    """Writes documents into files ``NAME-00001.npy`` and so on."""

    def __init__(self, directory: Path, name: str, separator: int) -> None:
        self._directory, self._name, self._separator = directory, name, separator
        self._files: dict[str, str] = {}
        self._waiting: list[Tokens] = []
        self._documents, self._tokens, self._held = 0, 0, 0

    def add(self, documents: Iterable[list[int]]) -> None:
        """Add the token ids of documents."""
        for ids in documents:
            tokens = np.array([*ids, self._separator], dtype=np.uint16)
            self._waiting.append(tokens)
            self._held += len(tokens)
            self._documents += 1
            if self._held >= _SHARD_TOKENS:
                self._write()

    def finish(self) -> TokenFiles:
        """Write what is left, and say what was written."""
        if self._waiting:
            self._write()
        return TokenFiles(documents=self._documents, tokens=self._tokens, files=self._files)

    def _write(self) -> None:
        path = self._directory / f"{self._name}-{len(self._files) + 1:05d}.npy"
        np.save(path, np.concatenate(self._waiting))
        with path.open("rb") as file:
            self._files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        self._tokens += self._held
        self._waiting, self._held = [], 0


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of a tokenizer's tokens with their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _mapped(path: Path) -> Tokens:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as token ids: {one_line(error)}") from error
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise UserError(f"{path}: holds no token ids (uint16)")
    return np.asarray(tokens)  # the same memory, and quicker to cut
