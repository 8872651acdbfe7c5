"""What the augmentations of text have in common: counting, choosing and replacing whitespace words."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator

_CORE = re.compile(r"[^\W_](?:.*[^\W_])?")  # from the first letter or digit to the last


def share_of(count: int, rate: float) -> int:
    """The whole number nearest to ``rate * count``, halves up, so that over many texts the mean share is the rate."""
    return math.floor(rate * count + 0.5)


def draw_below(bound: int, generator: Generator) -> int:
    """A uniform integer from 0 to ``bound - 1``."""
    import torch

    return int(torch.randint(bound, (), generator=generator))


def choose(count: int, chosen: int, generator: Generator) -> list[int]:
    """Distinct positions below ``count``, ascending; every set of ``chosen`` of them is equally likely."""
    import torch

    positions: list[int] = torch.randperm(count, generator=generator)[:chosen].tolist()
    return sorted(positions)


def core(word: str) -> str:
    """A word without the punctuation around it: ``didn't`` of ``"didn't,"``; nothing where there is nothing else."""
    found = _CORE.search(word)
    return found.group() if found else ""


def replace_core(word: str, replacement: str) -> str:
    """Put another word in a word's place, with its punctuation and its capitals: ``(Car,`` becomes ``(Motorcar,``."""
    old = core(word)
    if old.isupper() and len(old) > 1:
        replacement = replacement.upper()
    elif old[0].isupper():
        replacement = replacement[0].upper() + replacement[1:]
    return word.replace(old, replacement, 1)
