"""ConSERT's training text: the sentences of the STS sets, without their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simcse_kit.data.files import read_lines
from simcse_kit.data.senteval import find_folder
from simcse_kit.data.sts import SICK_FILES, SPLITS, SUBSETS
from simcse_kit.data.sts_formats import read_sick, read_stsb

STS_TEXTS = "sts_texts"
"""How a recipe names them."""


def sts_texts(data: Sequence[str | Path]) -> Iterator[str]:
    """Yield both sentences of every pair of STS12-16, STS-B and SICK, pairs without a score and all splits included.

    With all of SentEval's files these are the 89,192 texts of ConSERT (Yan et al. 2021, Table 1), repeated ones as
    often as they occur. They contain every test sentence: a model trained on them is evaluated transductively.

    Args:
        data: folders in SentEval's layout.

    Raises:
        UserError: for a file that is missing or malformed.
    """
    for year, subsets in SUBSETS.items():
        folder = find_folder(STS_TEXTS, f"STS/{year}-en-test", data)
        for subset in subsets:
            for line in read_lines(folder / f"STS.input.{subset}.txt"):
                yield from line.split("\t")[:2]
    stsb, sick = (find_folder(STS_TEXTS, folder, data) for folder in ("STS/STSBenchmark", "SICK"))
    for split in SPLITS["STSB"]:
        for first, second, _ in read_stsb(stsb / f"sts-{split}.csv"):
            yield from (first, second)
    for name in SICK_FILES.values():
        for first, second, _ in read_sick(sick / name):
            yield from (first, second)
