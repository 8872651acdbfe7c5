"""Named sets of texts to encode: lines of a file, STS-B's sentences, or mixes of lengths made of a file's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_kit.data.files import read_lines
from simcse_kit.errors import UserError

Tokenize = Callable[[list[str]], list[list[int]]]

_LONGEST = 256
# Of the logarithms of a mix's lengths.
_SIGMA = 1.0
_SPLITS = ("test", "dev", "train")
_RECIPE = re.compile(r"(stsb|lognormal(?P<median>[1-9]\d*)|length(?P<length>[1-9]\d*)):(?P<path>.+)")


class TextSet(NamedTuple):
    """Different texts, since repeated ones would favour whoever encodes them once, and the recipe or file's name."""

    name: str
    source: str
    texts: list[str]


def open_text_set(named: str, *, count: int, seed: int, tokenize: Tokenize) -> TextSet:
    """Make a set of texts of what the command line says.

    Args:
        named: ``NAME=SOURCE``, the source being a file with a text a line; ``stsb:DIR``, the sentences of STS-B in a
            folder of SentEval's layout (test, then dev, then train); ``lognormalM:FILE``, texts of 1 to 256 tokens, M
            in the middle, made of a file's words; or ``lengthN:FILE``, the same with N tokens each.
        count: How many texts.
        seed: Of made texts.
        tokenize: Token ids of texts, without special tokens.

    Raises:
        UserError: If it says something else, a file cannot be read, or there are not so many different texts in it.
    """
    name, equals, source = named.partition("=")
    if not (name and equals and source):
        raise UserError(f"--texts {named}: expected NAME=SOURCE, such as wiki=sentences.txt")
    recipe = _RECIPE.fullmatch(source)
    if recipe is None:
        found: Iterable[str] = lines_of(Path(source))
    elif source.startswith("stsb:"):
        found = _stsb_sentences(Path(recipe["path"]))
    else:
        random = np.random.default_rng(seed)
        length, median = recipe["length"], recipe["median"]
        # The shortest of them come out equal now and then, so there are more than are asked for.
        drawn = np.full(2 * count, int(length or median))
        if median:
            drawn = drawn * random.lognormal(0, _SIGMA, len(drawn))
        lengths = drawn.clip(1, None if length else _LONGEST).astype(int).tolist()
        found = _made_texts(Path(recipe["path"]), lengths, random, tokenize)
    texts = list(islice(dict.fromkeys(found), count))
    if len(texts) < count:
        raise UserError(f"--texts {named}: {len(texts):,} different texts, but --count is {count:,}")
    file = Path(source if recipe is None else recipe["path"]).resolve().name
    return TextSet(name, file if recipe is None else f"{recipe[1]}:{file}", texts)


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file that are not blank, without the blanks around them.

    Raises:
        UserError: If it cannot be read.
    """
    return (text for line in read_lines(path) if (text := line.strip()))


def _stsb_sentences(folder: Path) -> Iterable[str]:
    from simcse_kit.data.sts import load_sts_task

    return chain.from_iterable(load_sts_task("STSB", [folder], split=split).sentences for split in _SPLITS)


def _made_texts(path: Path, lengths: Sequence[int], random: np.random.Generator, tokenize: Tokenize) -> Iterator[str]:
    """Texts of a file's words, as frequent as they are there, each with so many tokens."""
    words = [word for line in lines_of(path) for word in line.split()]
    kinds = list(dict.fromkeys(words))
    tokens = dict(zip(kinds, map(len, tokenize(kinds)), strict=True)) if kinds else {}
    if 1 not in tokens.values():
        raise UserError(f"{path} has no word of one token, which texts of any length need")
    draws = _endless(words, random)
    for length in lengths:
        text: list[str] = []
        left = length
        while left > 0:
            word = next(draws)
            if 0 < tokens[word] <= left:  # else the next one may fit
                text.append(word)
                left -= tokens[word]
        yield " ".join(text)


def _endless(words: Sequence[str], random: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (words[place] for place in random.permutation(len(words)))
