"""The built-in scenes."""

from collections.abc import Callable, Hashable
from random import Random
from typing import TypeVar

from simcse_kit.errors import UserError

from .composition import Composer
from .lexicon import SPLITS

__all__ = ["scene_pairs", "scene_sentences", "scene_triplets"]

_Row = TypeVar("_Row", bound=Hashable)


def scene_sentences(split: str = "train", *, seed: int = 0, limit: int | None = None) -> list[str]:
    """Distinct sentences."""
    composer = _composer("sentences", split, seed)
    return _distinct(composer.sentence, {"train": 24_000, "dev": 2_000, "test": 2_000}[split], limit)


def scene_triplets(split: str = "train", *, seed: int = 0, limit: int | None = None) -> list[tuple[str, str, str]]:
    """Triplets."""
    composer = _composer("triplets", split, seed)
    return _distinct(composer.triplet, {"train": 10_000, "dev": 1_000, "test": 1_000}[split], limit)


def scene_pairs(split: str = "test", *, seed: int = 0, limit: int | None = None) -> list[tuple[str, str, float]]:
    """Pairs."""
    composer = _composer("pairs", split, seed)
    return _distinct(composer.pair, {"train": 10_000, "dev": 1_000, "test": 1_500}[split], limit)


def _composer(product: str, split: str, seed: int) -> Composer:
    if split not in SPLITS:
        raise UserError(f"scenes: no split {split!r}; choose one of {', '.join(SPLITS)}")
    return Composer(split, Random(f"{product} {split} {seed}"))


def _distinct(attempt: Callable[[], _Row | None], default: int, limit: int | None) -> list[_Row]:
    """The first distinct results of attempts."""
    rows: dict[_Row, None] = {}
    while len(rows) < (default if limit is None else limit):
        row = attempt()
        if row is not None:
            rows[row] = None
    return list(rows)
