"""The average of word vectors (GloVe, word2vec, fastText): the baseline that any sentence encoder has to beat."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.files import read_lines, sha256_of_files
from simcse_kit.errors import UserError


class WordVectors:
    """Sentences as the mean of their words' vectors, as SentEval's bag of words has it.

    Legend: N sentences, W words, D dimensions.

    Attributes:
        source: The path or name the vectors were opened from.
        words: Row of each word in ``vectors``.
        vectors: float32 [W, D].
        pooling: ``mean``; this and the following as ``SentenceEncoder`` has them.
        head_name: ``none``.
        normalize: False.
        dtype: ``float32``.
        max_length: None: sentences are not cut.
    """

    pooling = "mean"
    head_name = "none"
    normalize = False
    dtype = "float32"
    max_length: int | None = None

    def __init__(self, words: dict[str, int], vectors: NDArray[np.float32], path: Path) -> None:
        self.words = words
        self.vectors = vectors
        self.source = str(path)
        self._path = path

    @classmethod
    def from_file(cls, path: str | Path, *, vocabulary: Collection[str] | None = None) -> WordVectors:
        """Read a text file of word vectors: a word and its D numbers a line, separated by spaces.

        A first line of two integers, as word2vec and fastText write it, gives the number of words and D; GloVe has
        none. Of a word that comes twice the first line counts.

        Args:
            path: The file, in UTF-8; gzipped if its name ends in ``.gz``.
            vocabulary: The only words to keep, for a file much larger than what is encoded (see ``vocabulary_of``);
                the lines of other words are passed over unread. None: all.

        Raises:
            UserError: If the file cannot be read, has no vectors or not as many as it says, or a line is malformed.
        """
        path = Path(path).expanduser()
        wanted = None if vocabulary is None else frozenset(vocabulary)
        announced, dimensions, count = None, 0, 0
        words: dict[str, int] = {}
        # One buffer that grows: neither an object a word, nor a second copy of all numbers at the end.
        numbers = bytearray()
        for number, line in enumerate(read_lines(path), start=1):
            if number == 1 and (header := _header(line)):
                announced, dimensions = header
                continue
            word, _, rest = line.partition(" ")
            dimensions = dimensions or len(rest.split())
            count += 1
            if word in words or (wanted is not None and word not in wanted):
                continue
            vector = _vector(rest.split(), dimensions)
            if vector is not None:
                words[word] = len(words)
                numbers += vector.tobytes()
            elif not _is_phrase(rest.split(), dimensions):
                needed = f"{dimensions} finite numbers" if dimensions else "its numbers"
                raise UserError(f"{path}, line {number}: a word and {needed}, separated by spaces, are needed")
        if announced is not None and count != announced:
            raise UserError(f"{path}: its first line announces {announced} words, but there are {count}; is it whole?")
        if count == 0:
            raise UserError(f"{path} has no word vectors")
        vectors = np.frombuffer(numbers, dtype=np.float32).reshape(len(words), dimensions)
        return cls(words, vectors, path)

    @property
    def dimension(self) -> int:
        """Width of the vectors, D."""
        return int(self.vectors.shape[1])

    @cached_property
    def weights_sha256(self) -> str:
        """The hash of the file, as it lies on disk."""
        return sha256_of_files(self._path)

    def encode(self, sentences: Iterable[str], /) -> NDArray[np.float32]:
        """Average the vectors of each sentence's words, split at white space.

        A word is looked up as it is, else lower-cased, and left out if neither has a vector. A sentence without any
        known word gets the zero vector, whose cosine with every other is taken as 0.

        Returns:
            Vectors, float32 [N, D].
        """
        rows = [[row for word in sentence.split() if (row := self._row(word)) is not None] for sentence in sentences]
        means = np.zeros((len(rows), self.dimension), dtype=np.float32)
        for i, known in enumerate(rows):
            if known:
                means[i] = self.vectors[known].mean(axis=0, dtype=np.float64)
        return means

    def _row(self, word: str) -> int | None:
        row = self.words.get(word)
        return self.words.get(word.lower()) if row is None else row


def vocabulary_of(sentences: Iterable[str]) -> set[str]:
    """The words that ``WordVectors.encode`` may look up in these sentences."""
    words = {word for sentence in sentences for word in sentence.split()}
    return words | {word.lower() for word in words}


def _header(line: str) -> tuple[int, int] | None:
    """Number of words and dimensions, if the line says these two."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _vector(fields: list[str], dimensions: int) -> NDArray[np.float32] | None:
    """The fields as a vector of so many finite numbers, or None if they are none."""
    try:
        vector = np.array(fields, dtype=np.float32)
    except ValueError:
        return None
    return vector if len(vector) == dimensions > 0 and np.isfinite(vector).all() else None


def _is_phrase(fields: list[str], dimensions: int) -> bool:
    """Whether what follows the first word are more words and then a vector: GloVe has a few, and no word finds them."""
    return _vector(fields[:1], 1) is None and _vector(fields[-dimensions:], dimensions) is not None
