"""Semantic textual similarity sets: sentence pairs with gold scores, in SentEval's layout or a file of one's own.

The protocol is that of SentEval as SimCSE uses it: which subsets belong to a year, which pairs have a gold score, and
the text as it lies on disk (tokenised, and lower-cased but for SICK). Pairs keep the order of the file; correlations
do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.files import column_names, iter_rows, sha256_of_files
from simcse_kit.data.hub import fetch_file, load_split, split_rows
from simcse_kit.data.rows import did_you_mean, sha256_of_rows
from simcse_kit.data.senteval import find_folder, is_here, local_senteval_folders, senteval_folders
from simcse_kit.data.sts_formats import (
    Pair,
    has_stsb_layout,
    pair_columns,
    read_semeval,
    read_sick,
    read_stsb,
    read_table,
)
from simcse_kit.errors import UserError

STS_TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR")

SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),  # SMT needs a licence of its own: SentEval leaves it out
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""The subsets of each SemEval year."""

SPLITS = {"STSB": ("train", "dev", "test"), "SICKR": ("train", "dev", "test")}
"""The splits of the tasks that have more than a test split."""

SICK_FILES = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}

# STS-B as released: where it lies beside SentEval's folders, and on the hub, by whose names its splits go there.
_RAW_FOLDER = "raw/STSBenchmark"
_RAW_STSB = "hub:mteb/stsbenchmark-sts@b0fddb56ed78048fa8b90373c8a3cfc37b684831"
_RAW_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class StsSubset:
    """Scored sentence pairs.

    Attributes:
        name: SemEval's name for the subset, or the task's where it has but one.
        sentences1: n texts.
        sentences2: n texts.
        scores: gold scores [n], float64.
    """

    name: str
    sentences1: list[str]
    sentences2: list[str]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class StsTask:
    """An evaluation set with what a result has to say about it.

    Attributes:
        name: one of ``STS_TASKS``, or what the user calls a set of their own.
        split: ``train``, ``dev`` or ``test``.
        text: ``disk`` for the text as SentEval prepares it (and for a file of one's own), ``raw`` for STS-B as
            released: cased and untokenised.
        subsets: one or more.
        data_sha256: SHA-256 of the contents of the files read, in the order read; where they lie does not matter.
    """

    name: str
    split: str
    text: str
    subsets: tuple[StsSubset, ...]
    data_sha256: str

    @property
    def sentences(self) -> Iterator[str]:
        """All sentences, repeated ones as often as they occur."""
        return chain.from_iterable(chain(subset.sentences1, subset.sentences2) for subset in self.subsets)


def load_evaluation(data: str | Path, *, task: str, split: str, text: str = "disk") -> StsTask:
    """Load what a recipe's ``evaluation.data`` names.

    Args:
        data: a folder in SentEval's layout, ``senteval`` (that folder, found or fetched), a file of scored pairs
            (``hf://`` addresses too), ``hub:owner/name:split``, or ``scenes`` (the built-in pairs).
        task: which task of a folder; for a file or a hub data set only the name that results carry.
        split: which split of a folder or the scenes; for a file only the name that results carry.
        text: as in ``load_sts_task``, for folders.

    Raises:
        UserError: for anything missing or malformed.
    """
    name = str(data)
    if name == "scenes":
        return _load_scenes(split)
    if name == "senteval":
        return load_senteval_task(task, split=split, text=text)
    if name.startswith("hub:"):
        return _load_hub(name, task)
    path = fetch_file(name) if name.startswith("hf://") else Path(data).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {path} (looked for in {Path.cwd()})")
    if path.is_dir():
        return load_sts_task(task, [path], split=split, text=text)
    return load_sts_file(path, name=task, split=split)


def load_senteval_task(name: str, *, split: str = "test", text: str = "disk") -> StsTask:
    """Load one of ``STS_TASKS`` from SentEval's data, which is found on this machine or fetched once.

    The archive that is fetched has no raw STS-B, which comes from the hub as a data set of its own.

    Args:
        name: the task, in any case.
        split: as in ``load_sts_task``.
        text: the same.

    Raises:
        UserError: as ``load_sts_task``, and for what cannot be fetched.
    """
    raw_stsb = text == "raw" and sts_task_name(name) == "STSB" and split in _RAW_SPLITS
    if raw_stsb and not is_here(_RAW_FOLDER):
        return replace(_load_hub(f"{_RAW_STSB}:{_RAW_SPLITS[split]}", "STSB"), split=split, text=text)
    return load_sts_task(name, senteval_folders(), split=split, text=text)


def senteval_is_here(text: str) -> bool:
    """Whether SentEval's data, or its raw STS-B, would not have to be fetched."""
    return is_here(_RAW_FOLDER) if text == "raw" else bool(local_senteval_folders())


def load_sts_task(name: str, data: Sequence[str | Path], *, split: str = "test", text: str = "disk") -> StsTask:
    """Load one of ``STS_TASKS`` from a folder in SentEval's layout.

    Args:
        name: the task, in any case.
        data: folders to look in; the first that has the task serves. Each is a ``SentEval/data/downstream`` folder,
            or SentEval's root.
        split: ``test``; STS-B and SICK-R have ``train`` and ``dev`` too (SICK's trial set).
        text: ``disk``, or ``raw`` for the untokenised STS-B in ``raw/STSBenchmark`` beside ``STS``.

    Raises:
        UserError: for an unknown task, a split or text it does not have, a missing file, and a malformed line: too
            few columns, a gold score that is no number or outside 0-5 (SICK: 1-5), gold and text of unequal length.
    """
    name = sts_task_name(name)
    splits = SPLITS.get(name, ("test",))
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}, only {', '.join(splits)}")
    if text not in ("disk", "raw"):
        raise UserError(f"text is 'disk' or 'raw', not {text!r}")
    if text == "raw" and name != "STSB":
        raise UserError(f"{name} has no raw text, only STSB has; use text 'disk'")
    if name in SUBSETS:
        folder = find_folder(name, f"STS/{name}-en-test", data)
        files = [(folder / f"STS.input.{subset}.txt", folder / f"STS.gs.{subset}.txt") for subset in SUBSETS[name]]
        subsets = [
            _subset(subset, texts, read_semeval(texts, golds))
            for subset, (texts, golds) in zip(SUBSETS[name], files, strict=True)
        ]
        return StsTask(name, split, text, tuple(subsets), sha256_of_files(*chain.from_iterable(files)))
    if name == "SICKR":
        path = find_folder(name, "SICK", data) / SICK_FILES[split]
        subset = _subset(name, path, read_sick(path))
    else:
        folder = find_folder(name, _RAW_FOLDER if text == "raw" else "STS/STSBenchmark", data)
        path = folder / f"sts-{split}.csv"
        subset = _subset(name, path, read_stsb(path))
    return StsTask(name, split, text, (subset,), sha256_of_files(path))


def sts_task_name(name: str) -> str:
    """Return the name as ``STS_TASKS`` spells it.

    Raises:
        UserError: for a name that is none of them in any case, with the closest that is.
    """
    if name.upper() not in STS_TASKS:
        raise UserError(f"no STS task {name!r}{did_you_mean(name, STS_TASKS)}; there are {', '.join(STS_TASKS)}")
    return name.upper()


def load_sts_file(path: Path, *, name: str, split: str) -> StsTask:
    """Load scored pairs from a file of the user's own.

    Two layouts: STS-B's own (tab-separated, no header, score and sentences in columns 5 to 7, scores 0-5), which a
    .csv or .tsv file is taken for if its first line looks so; and any .csv, .tsv, .jsonl or .parquet with named
    columns ``sentence1``, ``sentence2``, ``score``. ``sentence_A``, ``sentence_B`` and ``similarity_score``,
    ``relatedness_score``, ``label`` serve as well. Scores there may be any finite numbers.

    Args:
        path: the file.
        name: the task name that results carry.
        split: the split that results carry.

    Raises:
        UserError: for a file that cannot be read or has no rows, missing columns, and malformed cells (row named).
    """
    if has_stsb_layout(path):
        pairs = read_stsb(path)
    else:
        columns = pair_columns(str(path), column_names(path))
        pairs = read_table(iter_rows(path, columns), columns)
    return StsTask(name, split, "disk", (_subset(name, path, pairs),), sha256_of_files(path))


def _load_hub(source: str, name: str) -> StsTask:
    dataset = load_split(source)
    columns = pair_columns(source, dataset.column_names)
    subset = _subset(name, source, read_table(split_rows(source, dataset, columns), columns))
    return StsTask(name, source.rpartition(":")[2], "disk", (subset,), _sha256_of_pairs(subset))


def _load_scenes(split: str) -> StsTask:
    from simcse_kit.data.scenes import scene_pairs

    subset = _subset("scenes", "scenes", scene_pairs(split))
    return StsTask("scenes", split, "disk", (subset,), _sha256_of_pairs(subset))


def _sha256_of_pairs(subset: StsSubset) -> str:
    return sha256_of_rows(zip(subset.sentences1, subset.sentences2, subset.scores.tolist(), strict=True))


def _subset(name: str, source: str | Path, pairs: Iterable[Pair]) -> StsSubset:
    columns = list(zip(*pairs, strict=True))
    if not columns:
        raise UserError(f"{source} has no scored pairs")
    sentences1, sentences2, scores = columns
    return StsSubset(name, list(sentences1), list(sentences2), np.array(scores, dtype=np.float64))
