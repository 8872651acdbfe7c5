"""Built-in scenes: synthetic English sentences, triplets and graded pairs, deterministic by seed.

A scene says who does what to whom, with what, how, where and when, how many they are, and whether it happens at all.
Sentences are scenes put into words; triplets and pairs are related scenes put into words, so that what is graded is
what they mean and not how they look:

* The entailment of a triplet means the same as its anchor or leaves out a detail, mostly in other words (synonyms, a
  passive, "bought from" for "sold to"). The contradiction keeps most of the anchor: it is denied, its verb or a noun is
  replaced, its roles are exchanged, a number, place or time is another.
* The score of a pair follows from the two scenes alone, by the rules of `meaning.score`: 5 the same, 4 but for details,
  3 but for one circumstance, 2 the heart of it differs, 1 the same topic, 0 unrelated. Most pairs are chosen so that
  the words hardly show the score: on the test pairs, word overlap correlates with it at less than 0.1.

Splits share neither sentences nor events: a verb belongs to one split. Of the test's constructions more than 80% occur
nowhere in training ("it is not true that ...", "the one who ... was ..."), and so do many of its nouns, numbers,
modifiers, times and places; the same holds of dev, to a lesser degree. Select on dev, report test.

The data is synthetic, and a figure measured on it has to be labelled so: it tells whether an encoder minds roles,
negation and numbers in plain sentences, not how it does on text in the wild.

| file | what it holds |
|---|---|
| concepts.txt, events.txt, templates.txt | all words and constructions, as tables |
| lexicon.py | reads them |
| meaning.py | the scene, and the score of two scenes |
| morphology.py | English inflection |
| grammar.py | puts a scene into words |
| sampling.py | random scenes, and changes to scenes |
| composition.py | what sentences, triplets and pairs are made of |
"""

from collections.abc import Callable, Hashable
from random import Random
from typing import TypeVar

from simcse_kit.errors import UserError

from .composition import Composer
from .lexicon import SPLITS

__all__ = ["scene_pairs", "scene_sentences", "scene_triplets"]

_Row = TypeVar("_Row", bound=Hashable)
_SENTENCES = {"train": 24_000, "dev": 2_000, "test": 2_000}
_TRIPLETS = {"train": 10_000, "dev": 1_000, "test": 1_000}
_PAIRS = {"train": 10_000, "dev": 1_000, "test": 1_500}


def scene_sentences(split: str = "train", *, seed: int = 0, limit: int | None = None) -> list[str]:
    """Distinct sentences, for unsupervised training.

    Args:
        split: "train" (24,000 sentences), "dev" or "test" (2,000 each).
        seed: Another seed gives other sentences, of the same constructions and words.
        limit: How many to return; fewer are the first of the default, more continue it.

    Raises:
        UserError: There is no such split.
    """
    return _distinct(_composer("sentences", split, seed).sentence, _SENTENCES[split] if limit is None else limit)


def scene_triplets(split: str = "train", *, seed: int = 0, limit: int | None = None) -> list[tuple[str, str, str]]:
    """Distinct triplets (anchor, entailment, contradiction), for supervised contrastive training.

    Args:
        split: "train" (10,000 triplets), "dev" or "test" (1,000 each).
        seed: Another seed gives other triplets, of the same constructions and words.
        limit: How many to return; fewer are the first of the default, more continue it.

    Raises:
        UserError: There is no such split.
    """
    return _distinct(_composer("triplets", split, seed).triplet, _TRIPLETS[split] if limit is None else limit)


def scene_pairs(split: str = "test", *, seed: int = 0, limit: int | None = None) -> list[tuple[str, str, float]]:
    """Distinct pairs (sentence1, sentence2, score in [0, 5]), for evaluation and for regression objectives.

    Args:
        split: "train" (10,000 pairs), "dev" (1,000) or "test" (1,500).
        seed: Another seed gives other pairs, of the same constructions and words.
        limit: How many to return; fewer are the first of the default, more continue it.

    Raises:
        UserError: There is no such split.
    """
    return _distinct(_composer("pairs", split, seed).pair, _PAIRS[split] if limit is None else limit)


def _composer(what: str, split: str, seed: int) -> Composer:
    if split not in SPLITS:
        raise UserError(f"scenes: there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    return Composer(split, Random(f"{what} {split} {seed}"))


def _distinct(attempt: Callable[[], _Row | None], count: int) -> list[_Row]:
    rows: dict[_Row, None] = {}
    while len(rows) < count:
        if (row := attempt()) is not None:
            rows[row] = None
    return list(rows)
