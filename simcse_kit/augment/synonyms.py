"""Words replaced by their synonyms in WordNet (Miller 1995), read from the plain files of its database."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from simcse_kit.augment.words import choose, core, draw_below, replace_core, share_of
from simcse_kit.data.files import read_lines
from simcse_kit.errors import UserError

if TYPE_CHECKING:
    from torch import Generator

    from simcse_kit.augment.text import BatchAugmentation

_PARTS = ("noun", "verb", "adj", "adv")
_SYSTEM_DIRECTORY = Path("/usr/share/wordnet")  # of Debian's package wordnet-base
# The closed classes: determiners, pronouns, prepositions and particles, conjunctions, auxiliaries. WordNet has other
# words of the same spelling ("in" is inch, "a" adenine, "can" a tin, "I" iodine), or none at all.
_CLOSED_CLASSES = """
a an the this that these those each every either neither some any no none all both half few many much more most
less least several such another other one
i me mine we us he him she it they you who what which whose whatever someone somebody something anyone anybody
anything everyone everybody everything nobody nothing
about above across after against along among around as at before behind below beneath beside besides between beyond
but by despite down during except for from in inside into like near of off on out outside over past per since
through throughout till to under until up upon via with within without
and or nor so yet if because although though unless while when where why how than once
am is are was were be been being have has had having do does did doing done can could will would shall should may
might must need dare not
"""
_FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())


class WordNet:
    """The synonyms of English words, of every sense and part of speech.

    Attributes:
        directory: The folder of the database: ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv``, in the
            format of the manual page wndb(5WN), as WordNet 3.0 and 3.1 have it.
    """

    def __init__(self, directory: Path) -> None:
        """Read the database.

        Raises:
            UserError: if one of its files is missing or is not in the format.
        """
        self.directory = directory
        self._synsets: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._found: dict[str, tuple[str, ...]] = {}
        for part in _PARTS:
            for synset in _read_synsets(directory / f"data.{part}"):
                for lemma in synset:
                    self._synsets[lemma].append(synset)

    def synonyms(self, word: str) -> tuple[str, ...]:
        """All words that share a sense with a word; those of several words are spelled with spaces.

        Args:
            word: a word as it stands in a text. Only lemmas are found (``dog``, not ``dogs``), and no function words.
                One with capitals is looked up both as it is and in lower case, one without only as it is: ``march``
                is no month, ``March`` may be one or the beginning of a sentence.

        Returns:
            Sorted; without other spellings of the word itself that differ in case only.
        """
        if word not in self._found:
            self._found[word] = self._look_up(word)
        return self._found[word]

    def _look_up(self, word: str) -> tuple[str, ...]:
        lowered = word.lower()
        if len(word) < 2 or lowered in _FUNCTION_WORDS:
            return ()
        synsets = [synset for spelling in {word, lowered} for synset in self._synsets.get(spelling, ())]
        return tuple(sorted({lemma for synset in synsets for lemma in synset if lemma.lower() != lowered}))


def find_wordnet(directory: str | None = None) -> Path:
    """The folder of the WordNet database.

    Args:
        directory: The folder; None: where WordNet's own environment variables say, ``WNSEARCHDIR`` or else
            ``WNHOME`` (its ``dict``), or else where operating systems install it.

    Raises:
        UserError: if there is no database.
    """
    search, home = os.environ.get("WNSEARCHDIR"), os.environ.get("WNHOME")
    named = directory or search or (home and f"{home}/dict")
    path = Path(named).expanduser() if named else _SYSTEM_DIRECTORY
    missing = [f"data.{part}" for part in _PARTS if not (path / f"data.{part}").is_file()]
    if missing:
        raise UserError(
            f"no WordNet in {path} (it has no {missing[0]}); install it (apt-get install wordnet-base), or set "
            "WNSEARCHDIR to the folder of its data.noun, data.verb, data.adj and data.adv"
        )
    return path


def synonym_replacement(text: str, generator: Generator, *, wordnet: WordNet, rate: float | None = None) -> str:
    """Replace words by synonyms (SimCSE's "synonym replacement", Gao et al. 2021, Table 1).

    As nothing tells which sense a word has, any of them may be taken, of any part of speech, as by Wei & Zou (2019).
    The word's punctuation and capitals stay; inflected forms are not replaced, since WordNet lists lemmas only.

    Args:
        text: of n words.
        generator: decides which words, each set equally likely, and by which of its synonyms, equally likely too.
        wordnet: where the synonyms are from.
        rate: None: one word, as in the paper. In [0, 1): the nearest whole number to ``rate * n``, halves up. Either
            way no more than have synonyms.
    """
    words = text.split()
    synonyms = {place: found for place, word in enumerate(words) if (found := wordnet.synonyms(core(word)))}
    places = list(synonyms)
    for index in choose(len(places), 1 if rate is None else share_of(len(words), rate), generator):
        place = places[index]
        synonym = synonyms[place][draw_below(len(synonyms[place]), generator)]
        words[place] = replace_core(words[place], synonym)
    return " ".join(words) or text


def open_synonym_replacement(*, rate: float | None = None, wordnet: str | None = None) -> BatchAugmentation:
    """``synonym_replacement`` as a function of a batch.

    Args:
        rate: as there.
        wordnet: the folder of the database; None: as ``find_wordnet`` finds it.

    Raises:
        UserError: if there is no database, or one of its files is not in the format.
    """
    database = WordNet(find_wordnet(wordnet))
    return lambda texts, generator: [
        synonym_replacement(text, generator, wordnet=database, rate=rate) for text in texts
    ]


def _read_synsets(path: Path) -> list[tuple[str, ...]]:
    """The lemmas of every synset that has more than one."""
    synsets = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("  "):  # the licence
            continue
        # offset, lexicographer file, type, count in hexadecimal digits, and the count times: lemma, id
        fields = line.split(" ")
        try:
            lemmas = [fields[4 + 2 * index] for index in range(int(fields[3], 16))]
        except (IndexError, ValueError):
            raise UserError(f"{path}, line {number}: no line of a WordNet database (see wndb(5WN))") from None
        if len(lemmas) > 1:
            # "(p)" and the like, behind an adjective, say where in a sentence it may stand.
            synsets.append(tuple(lemma.partition("(")[0].replace("_", " ") for lemma in lemmas))
    return synsets
