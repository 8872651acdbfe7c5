"""The words of the scenes: concepts and events, read once from the tables beside this file.

A concept is one meaning with its synonyms; its `general` concept includes it (apple: piece of fruit). An event is the
meaning of a verb together with the kinds of concepts that take part in it, so that nothing absurd is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files

from .morphology import pluralize

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, eq=False)
class Concept:
    """One meaning: a noun, a quantity, a modifier, or a phrase that says when, where, how or with what.

    Attributes:
        words: Synonyms of one another; the first names the concept.
        plurals: The plural of each word, for nouns.
        kinds: What it may stand for in an event.
        general: The concept that includes it, if any.
        fits: For modifiers the kinds of nouns, for times the tenses, that it goes with.
        split: "all", or the only split that may use it.
    """

    words: tuple[str, ...]
    plurals: tuple[str, ...]
    kinds: frozenset[str]
    general: "Concept | None"
    fits: frozenset[str]
    split: str

    @cached_property
    def chain(self) -> tuple["Concept", ...]:
        """The concept and all that include it, from special to general."""
        return (self, *self.general.chain) if self.general else (self,)

    @property
    def is_person(self) -> bool:
        """Whether the concept is somebody."""
        return self.chain[-1].words[0] == "person"


@dataclass(frozen=True, eq=False)
class Event:
    """What a verb says, and who and what may take part in it.

    Attributes:
        words: Infinitives, synonyms of one another; the first names the event.
        converses: Infinitives that say the same with the roles exchanged.
        opposites: Infinitives of the event that contradicts this one.
        generals: Infinitives of the event that this one is a special case of.
        active_only: Those of all these words that have no natural passive.
        topic: What the event belongs to, in one word.
        split: The only split that tells of it.
        agents: Kinds of concepts that may do it; likewise patients, recipients, instruments and places.
        traits: Kinds of manner that suit it, and words that events.txt explains.
    """

    words: tuple[str, ...]
    converses: tuple[str, ...]
    opposites: tuple[str, ...]
    generals: tuple[str, ...]
    active_only: frozenset[str]
    topic: str
    split: str
    agents: frozenset[str]
    patients: frozenset[str]
    recipients: frozenset[str]
    instruments: frozenset[str]
    places: frozenset[str]
    traits: frozenset[str]

    @property
    def name(self) -> str:
        """The word that identifies the meaning."""
        return self.words[0]

    @property
    def passives(self) -> tuple[str, ...]:
        """The words that can be put in the passive."""
        return tuple(word for word in self.words if word not in self.active_only)

    @cached_property
    def opposite(self) -> "Event | None":
        """The event that contradicts this one, with the same participants."""
        if not self.opposites:
            return None
        return replace(self, words=self.opposites, opposites=self.words, converses=(), generals=())

    @cached_property
    def general(self) -> "Event | None":
        """The event that includes this one, with the same participants."""
        if not self.generals:
            return None
        return replace(self, words=self.generals, opposites=(), converses=(), generals=())


@cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, in the order of concepts.txt."""
    named: dict[str, Concept] = {}
    found = []
    for split, kinds, meanings, general, fits in table("concepts.txt"):
        for meaning in meanings.split(";"):
            forms = [form.strip().partition(":")[::2] for form in meaning.split(",")]
            concept = Concept(
                words=tuple(word for word, _ in forms),
                plurals=tuple(irregular or pluralize(word) for word, irregular in forms),
                kinds=frozenset(kinds.split()) - {"-"},
                general=named[general] if general else None,
                fits=frozenset(fits.split()),
                split=split,
            )
            named.setdefault(concept.words[0], concept)
            found.append(concept)
    return tuple(found)


@cache
def events(split: str) -> tuple[Event, ...]:
    """The events of a split, the opposites included."""
    found = []
    for row in table("events.txt"):
        belongs, topic, *verbs, agents, patients, recipients, instruments, places, traits = row
        if belongs != split:
            continue
        words, converses, opposites, generals = (tuple(_words(cell.replace("*", ""))) for cell in verbs)
        event = Event(
            words=words,
            converses=converses,
            opposites=opposites,
            generals=generals,
            active_only=frozenset(
                word.rstrip("*")
                for cell in verbs
                for word in _words(cell)
                if word.endswith("*") or word.startswith("be ")
            ),
            topic=topic,
            split=split,
            agents=frozenset(agents.split()),
            patients=frozenset(patients.split()),
            recipients=frozenset(recipients.split()),
            instruments=frozenset(instruments.split()),
            places=frozenset(places.split()),
            traits=frozenset(traits.split()),
        )
        found += [event, event.opposite] if event.opposite else [event]
    return tuple(found)


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a table beside this file: cells between "|", after a header; "#" begins a comment line."""
    lines = (files(__package__) / name).read_text(encoding="utf-8").splitlines()
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in lines if line and not line.startswith("#")]
    return tuple(rows[1:])


def _words(cell: str) -> Iterator[str]:
    return (word.strip() for word in cell.split(",") if word.strip())
