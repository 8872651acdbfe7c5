"""Augmentations that turn a text into another text, before the encoder sees it.

All of them work on whitespace words, punctuation included, and join what is left by single spaces. A text that has
words keeps at least one; a text that has none comes back as it is. Every draw is from the ``torch.Generator`` given
(a CPU one), so that the same state of it gives the same text.

``open_text_augmentation`` gives each of them by name in one form, a function of a batch; ``TEXT_AUGMENTATIONS`` lists
what each name takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simcse_kit.augment.words import choose, draw_below, share_of
from simcse_kit.data.rows import did_you_mean
from simcse_kit.errors import UserError

if TYPE_CHECKING:
    from torch import Generator

BatchAugmentation = Callable[[list[str], "Generator"], list[str]]
"""Texts and a generator to the augmented texts, in the same order."""


def crop(text: str, generator: Generator, *, rate: float) -> str:
    """Keep one contiguous span of the words (SimCSE's "crop", Gao et al. 2021, Table 1).

    Args:
        text: of n words.
        generator: decides where the span starts; every start is equally likely.
        rate: in [0, 1); of the words, the nearest whole number to ``rate * n`` goes, halves up, but never all.
    """
    words = text.split()
    if not words:
        return text
    kept = max(len(words) - share_of(len(words), rate), 1)
    start = draw_below(len(words) - kept + 1, generator)
    return " ".join(words[start : start + kept])


def word_deletion(text: str, generator: Generator, *, rate: float) -> str:
    """Delete a share of the words, each set of them equally likely (SimCSE's "word deletion", Table 1).

    Args:
        text: of n words.
        generator: decides which go.
        rate: in [0, 1); of the words, the nearest whole number to ``rate * n`` goes, halves up, but never all.
    """
    words = text.split()
    return _delete(words, share_of(len(words), rate), generator) or text


def delete_one_word(text: str, generator: Generator) -> str:
    """Delete one word, each equally likely (SimCSE's "delete one word", Table 1); a single word stays."""
    return _delete(text.split(), 1, generator) or text


def word_repetition(text: str, generator: Generator, *, rate: float) -> str:
    """Say some words twice in a row ("word repetition" of ESimCSE, Wu et al. 2022).

    The paper repeats subwords, which a text has none of yet; here whole words are repeated.

    Args:
        text: of n words.
        generator: decides how many words are repeated, uniformly from 0 to max(2, floor(rate * n)) or n if that is
            less, and then which, every set equally likely.
        rate: in [0, 1), the paper's ``dup_rate``; at 0, up to two words are repeated all the same.
    """
    words = text.split()
    most = min(max(2, int(rate * len(words))), len(words))
    repeated = set(choose(len(words), draw_below(most + 1, generator), generator))
    return " ".join(f"{word} {word}" if place in repeated else word for place, word in enumerate(words)) or text


@dataclass(frozen=True)
class TextAugmentation:
    """One entry of ``TEXT_AUGMENTATIONS``.

    Attributes:
        open: Makes the function of a batch; called with all of ``settings`` by keyword. What it costs to set up is paid
            here, and what is missing is a ``UserError`` here.
        settings: What may be set, with defaults.
    """

    open: Callable[..., BatchAugmentation]
    settings: dict[str, Any]


def open_text_augmentation(name: str, **settings: Any) -> BatchAugmentation:
    """Make an augmentation ready for use.

    Args:
        name: a key of ``TEXT_AUGMENTATIONS``.
        settings: ``rate`` and whatever else this augmentation takes; None is the same as absent, the default.

    Raises:
        UserError: for an unknown name or setting, a rate outside [0, 1), and for word lists or models that are not to
            be had.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    check_text_augmentation(name, given)
    augmentation = TEXT_AUGMENTATIONS[name]
    return augmentation.open(**{**augmentation.settings, **given})


def check_text_augmentation(name: str, settings: Mapping[str, Any]) -> None:
    """See that an augmentation is known and takes these settings, without opening it.

    Raises:
        UserError: for an unknown name or setting, and a rate outside [0, 1).
    """
    if name not in TEXT_AUGMENTATIONS:
        known = ", ".join(TEXT_AUGMENTATIONS)
        raise UserError(f"no text augmentation {name!r}{did_you_mean(name, TEXT_AUGMENTATIONS)}; known are {known}")
    takes = TEXT_AUGMENTATIONS[name].settings
    for key in settings:
        if key not in takes:
            known = ", ".join(takes) or "no settings"
            raise UserError(f"{name} takes no {key!r}{did_you_mean(key, takes)}; it takes {known}")
    if not 0 <= settings.get("rate", 0) < 1:
        raise UserError(f"{name}: rate {settings['rate']} is no share of the words; it is at least 0 and less than 1")


def _delete(words: list[str], count: int, generator: Generator) -> str:
    kept = choose(len(words), max(len(words) - count, 1), generator)
    return " ".join(words[place] for place in kept)


def _each(augment: Callable[..., str]) -> Callable[..., BatchAugmentation]:
    """The opener of an augmentation that treats every text by itself and needs nothing set up."""

    def opener(**settings: Any) -> BatchAugmentation:
        return lambda texts, generator: [augment(text, generator, **settings) for text in texts]

    return opener


def _open_synonym(**settings: Any) -> BatchAugmentation:
    from simcse_kit.augment.synonyms import open_synonym_replacement

    return open_synonym_replacement(**settings)


def _open_masked_lm(**settings: Any) -> BatchAugmentation:
    from simcse_kit.augment.masked_lm import MaskedLMSubstitution

    return MaskedLMSubstitution(**settings)


# The default rates are those that did best in SimCSE's Table 1, and ESimCSE's.
TEXT_AUGMENTATIONS = {
    "crop": TextAugmentation(_each(crop), {"rate": 0.1}),
    "word_deletion": TextAugmentation(_each(word_deletion), {"rate": 0.1}),
    "delete_one_word": TextAugmentation(_each(delete_one_word), {}),
    "word_repetition": TextAugmentation(_each(word_repetition), {"rate": 0.32}),
    "synonym": TextAugmentation(_open_synonym, {"rate": None, "wordnet": None}),
    "masked_lm": TextAugmentation(
        _open_masked_lm, {"rate": 0.15, "model": "bert-base-uncased", "sample": True, "device": None}
    ),
}
