"""SentEval's seven transfer tasks: sentences, or for MRPC pairs of them, each with a class.

Text is what SentEval hands to an encoder: the tokens of the line, which whitespace separates, joined by single spaces.
A blank line of MR, CR, SUBJ or MPQA is a sample too, the empty sentence, as it is in SentEval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.files import read_lines, sha256_of_files, tab_separated
from simcse_kit.data.rows import did_you_mean
from simcse_kit.data.senteval import find_folder
from simcse_kit.errors import UserError

TRANSFER_TASKS = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")

TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
"""TREC's coarse question types; a label is the position here."""

_CLASS_FILES = {
    "MR": ("rt-polarity.pos", "rt-polarity.neg"),
    "CR": ("custrev.pos", "custrev.neg"),
    "SUBJ": ("subj.objective", "subj.subjective"),
    "MPQA": ("mpqa.pos", "mpqa.neg"),
}
"""Tasks without splits: the file of class 1 and the file of class 0, in SentEval's order."""

Sample = tuple[tuple[str, ...], int]
"""(one sentence or two, label)"""


@dataclass(frozen=True)
class LabelledSentences:
    """A labelled split.

    Attributes:
        sentences: n texts.
        labels: classes [n], int64, counted from 0.
        sentences2: the second sentence of each pair, n texts; None where samples are single sentences.
    """

    sentences: list[str]
    labels: NDArray[np.int64]
    sentences2: list[str] | None = None


@dataclass(frozen=True)
class TransferTask:
    """A classification task with what a result has to say about it.

    Attributes:
        name: one of ``TRANSFER_TASKS``.
        splits: ``all`` for MR, CR, SUBJ and MPQA, which come without splits; ``train``, ``dev`` and ``test`` for SST2;
            ``train`` and ``test`` for TREC and MRPC. Samples keep the order of the files.
        data_sha256: SHA-256 of the contents of the files read, in the order read; where they lie does not matter.
    """

    name: str
    splits: Mapping[str, LabelledSentences]
    data_sha256: str

    @property
    def sentences(self) -> Iterator[str]:
        """All sentences, repeated ones as often as they occur."""
        return chain.from_iterable(chain(split.sentences, split.sentences2 or ()) for split in self.splits.values())


def load_transfer_task(name: str, data: Sequence[str | Path]) -> TransferTask:
    """Load one of ``TRANSFER_TASKS`` from a folder in SentEval's layout.

    Args:
        name: the task, in any case, with or without a hyphen.
        data: folders to look in; the first that has the task serves. Each is a ``SentEval/data/downstream`` folder,
            or SentEval's root.

    Raises:
        UserError: for an unknown task, a missing or empty file, and a malformed line: too few columns, or a label that
            the task does not have.
    """
    name = transfer_task_name(name)
    folder = find_folder(name, "SST/binary" if name == "SST2" else name, data)
    if name in _CLASS_FILES:
        positive, negative = (folder / file for file in _CLASS_FILES[name])
        samples = chain(_read_class(positive, 1), _read_class(negative, 0))
        return TransferTask(name, {"all": _labelled(samples)}, sha256_of_files(positive, negative))
    read, files = _SPLIT_FILES[name]
    paths = {split: folder / file for split, file in files.items()}
    splits = {split: _labelled(_not_empty(path, read(path))) for split, path in paths.items()}
    return TransferTask(name, splits, sha256_of_files(*paths.values()))


def transfer_task_name(name: str) -> str:
    """Return the name as ``TRANSFER_TASKS`` spells it.

    Raises:
        UserError: for a name that is none of them in any case, hyphens aside, with the closest that is.
    """
    spelt = name.upper().replace("-", "")
    if spelt not in TRANSFER_TASKS:
        known = ", ".join(TRANSFER_TASKS)
        raise UserError(f"no transfer task {name!r}{did_you_mean(name, TRANSFER_TASKS)}; there are {known}")
    return spelt


def _read_class(path: Path, label: int) -> Iterator[Sample]:
    """Yield a file that holds one class, a sentence a line."""
    return _not_empty(path, (((_spaced(line),), label) for line in read_lines(path)))


def _read_sst2(path: Path) -> Iterator[Sample]:
    """Yield the lines of SST-2: sentence TAB 0 or 1."""
    for line, text in enumerate(read_lines(path), start=1):
        sentence, label = tab_separated(path, line, text, at_least=2)[:2]
        yield (_spaced(sentence),), _label(path, line, label, ("0", "1"))


def _read_trec(path: Path) -> Iterator[Sample]:
    """Yield the lines of TREC, which are ISO-8859-1: COARSE:fine question."""
    for line, text in enumerate(read_lines(path, encoding="ISO-8859-1"), start=1):
        types, _, question = text.partition(" ")
        coarse, _, fine = types.partition(":")
        if not fine:
            raise UserError(f"{path}, line {line}: a line is COARSE:fine question, this begins with {types!r}")
        yield (_spaced(question),), _label(path, line, coarse, TREC_CLASSES)


def _read_mrpc(path: Path) -> Iterator[Sample]:
    """Yield the pairs of MRPC: a header, then 0 or 1, two ids and two sentences, TAB between them and no quoting."""
    for line, text in islice(enumerate(read_lines(path), start=1), 1, None):
        label, _, _, sentence1, sentence2 = tab_separated(path, line, text, at_least=5)[:5]
        yield (_spaced(sentence1), _spaced(sentence2)), _label(path, line, label, ("0", "1"))


_SPLIT_FILES: Mapping[str, tuple[Callable[[Path], Iterator[Sample]], Mapping[str, str]]] = {
    "SST2": (_read_sst2, {split: f"sentiment-{split}" for split in ("train", "dev", "test")}),
    "TREC": (_read_trec, {"train": "train_5500.label", "test": "TREC_10.label"}),
    "MRPC": (_read_mrpc, {split: f"msr_paraphrase_{split}.txt" for split in ("train", "test")}),
}
"""Tasks with splits: how their files read, and the file of each split."""


def _labelled(samples: Iterable[Sample]) -> LabelledSentences:
    texts, labels = zip(*samples, strict=True)
    first, *second = (list(column) for column in zip(*texts, strict=True))
    return LabelledSentences(first, np.array(labels, dtype=np.int64), *second)


def _not_empty(path: Path, samples: Iterator[Sample]) -> Iterator[Sample]:
    for first in samples:
        return chain([first], samples)
    raise UserError(f"{path} has no samples")


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _label(path: Path, line: int, label: str, classes: Sequence[str]) -> int:
    if label not in classes:
        raise UserError(f"{path}, line {line}: the label {label!r} is none of {', '.join(classes)}")
    return classes.index(label)
