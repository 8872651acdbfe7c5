"""Documents of running text, and positive pairs from them: a sentence and one that follows it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from simcse_kit.data.files import format_of, read_lines
from simcse_kit.data.hub import fetch_file
from simcse_kit.errors import UserError

WINDOWS = {"next_sentence": 1, "next_three_sentences": 3}
"""How many of the following sentences the positive is drawn from, by the names of SimCSE's Table 2."""


def document_file(source: str | Path) -> Path:
    """The file that holds documents, of what a source of training text stands for; one on the hub is fetched.

    Raises:
        UserError: for a named data set, which has no documents, and for a file that is out of reach.
    """
    if isinstance(source, Path):
        return source
    if source.startswith("hf://"):
        return fetch_file(source)
    raise UserError(f"{source} has no documents; they are text files with blank lines between them")


def document_lines(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the lines of text files, one sentence each, with a blank one wherever a document ends: files end one too.

    Args:
        paths: ``.txt`` files, also compressed, in which blank lines separate documents.

    Raises:
        UserError: for a file of another format, and for one that cannot be read.
    """
    for path in paths:
        if format_of(path) != ".txt":
            raise UserError(
                f"{path}: documents are read from .txt files, one sentence or paragraph a line, blank lines between "
                "them"
            )
        yield from read_lines(path)
        yield ""


def documents_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the documents of lines as ``document_lines`` gives them: the lines of each, of which none is blank."""
    return (list(group) for is_text, group in groupby(lines, key=lambda line: bool(line.strip())) if is_text)


def positives_from_documents(lines: Iterable[str], window: int, *, seed: int) -> list[tuple[str, str]]:
    """Pair every sentence but the last of each document with one of those that follow it.

    With window 1 this is "next sentence", with 3 "next 3 sentences" of SimCSE's Table 2 (Gao et al. 2021). A document
    of one line gives no pair.

    Args:
        lines: one sentence each; blank lines separate documents.
        window: the positive is drawn uniformly from this many next sentences, or from those the document still has.
        seed: decides the draws.

    Returns:
        (anchor, positive), in the order of the anchors.

    Raises:
        UserError: if there is no pair at all.
    """
    draw = random.Random(seed).choice
    documents = list(documents_of(lines))
    pairs = [
        (anchor, draw(sentences[place : place + window]))
        for sentences in documents
        for place, anchor in enumerate(sentences[:-1], start=1)
    ]
    if not pairs:
        raise UserError(
            f"no pairs: of {len(documents)} documents none has two sentences; one sentence a line, blank lines only "
            "between documents"
        )
    return pairs
