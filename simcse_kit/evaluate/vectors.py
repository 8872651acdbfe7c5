"""Vectors of the sentences of an evaluation: what encodes them, and each of them encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Whatever turns n sentences into vectors [n, D]: ours, sentence-transformers', or a few lines of your own."""

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        """Encode sentences, row i being the vector of sentence i."""


class Vectors:
    """An encoder that has the vectors of some sentences at hand, from one call that encoded each of them once."""

    def __init__(self, encoder: Encoder, sentences: Iterable[str]) -> None:
        self._row = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
        self._vectors = np.asarray(encoder.encode(list(self._row)), dtype=np.float32)

    @classmethod
    def of(cls, encoder: Encoder, sentences: Iterable[str]) -> Vectors:
        """The vectors of some sentences; the encoder itself, if it is one that has them at hand."""
        return encoder if isinstance(encoder, Vectors) else cls(encoder, sentences)

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        """Look sentences up: [n, D]."""
        found: NDArray[np.float32] = self._vectors[[self._row[sentence] for sentence in sentences]]
        return found
