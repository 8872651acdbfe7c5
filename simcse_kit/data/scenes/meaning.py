"""What a scene is, and how alike in meaning two scenes are, on the scale of the STS tasks (0 to 5)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from .lexicon import Concept, Event

ROLES = ("agent", "patient", "recipient")
DETAILS = ("manner", "instrument", "place", "time")


@dataclass(frozen=True)
class Participant:
    """Who or what takes part: a noun, how many, and perhaps of what sort ("three young pupils")."""

    noun: Concept
    quantity: Concept
    modifier: Concept | None = None

    @property
    def is_plural(self) -> bool:
        """Whether there is more than one."""
        return self.quantity.words[0] != "one"


@dataclass(frozen=True)
class Scene:
    """Who does what to whom, with what, how, where and when; whether it is denied.

    Attributes:
        event: What is done.
        tense: "past", "present" or "future".
        agent: Who does it; None where nobody is named (a passive without "by").
        patient: To whom or what, if the event has a patient.
        recipient: To whom something is given, sold or shown.
        details: Manner, instrument, place and time, each None where nothing is said.
        negated: Whether the scene says that it does not happen.
    """

    event: Event
    tense: str
    agent: Participant | None
    patient: Participant | None = None
    recipient: Participant | None = None
    manner: Concept | None = None
    instrument: Concept | None = None
    place: Concept | None = None
    time: Concept | None = None
    negated: bool = False

    def but(self, **changes: Any) -> "Scene":
        """The same scene but for some of its attributes."""
        return replace(self, **changes)


class Difference(Enum):
    """One respect in which two scenes differ, by its weight."""

    DETAIL = "one says more, or says it more precisely, than the other"
    CIRCUMSTANCE = "another number, sort, time, place, manner or instrument"
    HEART = "another participant, exchanged roles, or one denies what the other says"


def score(first: Scene, second: Scene) -> float:
    """How alike two scenes are in meaning, from 0 to 5; words and constructions do not matter.

    | score | the scenes |
    |---|---|
    | 5 | say the same |
    | 4 | differ in details only: what one leaves out or says in general words |
    | 3 | differ in one circumstance: a number, sort, time, place, manner or instrument |
    | 2 | differ in their heart (a participant, the roles, yes and no), or in several circumstances |
    | 1 | share the topic or the patient, but tell of another event, or differ in their heart twice |
    | 0 | are unrelated |

    Two events are the same if they share their name or one includes the other (devour: eat), and a pair of opposites
    counts as the same event affirmed and denied. "A" and "the" mean the same.
    """
    if not (_opposed(first.event, second.event) or _included(first.event, second.event)):
        about_the_same = first.patient and second.patient and first.patient.noun is second.patient.noun
        return 1.0 if about_the_same or first.event.topic == second.event.topic else 0.0
    found = Counter(differences(first, second))
    if found[Difference.HEART]:
        return 2.0 if found[Difference.HEART] == 1 else 1.0
    if found[Difference.CIRCUMSTANCE]:
        return 3.0 if found[Difference.CIRCUMSTANCE] == 1 else 2.0
    return 4.0 if found[Difference.DETAIL] else 5.0


def differences(first: Scene, second: Scene) -> Iterator[Difference]:
    """The differences between two scenes of the same event."""
    opposed = _opposed(first.event, second.event)
    if opposed and first.negated != second.negated:
        yield Difference.CIRCUMSTANCE  # "did not open" and "closed" are compatible, yet not the same
    elif opposed or first.negated != second.negated:
        yield Difference.HEART
    elif first.event.name != second.event.name:
        yield Difference.DETAIL
    if roles_exchanged(first, second):
        yield Difference.HEART
        second = exchange_roles(second)
    for role in ROLES:
        yield from _between_participants(getattr(first, role), getattr(second, role))
    if first.tense != second.tense:
        yield Difference.CIRCUMSTANCE
    else:
        yield from _between(first.time, second.time, Difference.CIRCUMSTANCE)
    for detail in ("manner", "instrument", "place"):
        yield from _between(getattr(first, detail), getattr(second, detail), Difference.CIRCUMSTANCE)


def exchange_roles(scene: Scene) -> Scene:
    """The scene with agent and recipient, or without a recipient agent and patient, in each other's role."""
    if scene.recipient:
        return scene.but(agent=scene.recipient, recipient=scene.agent)
    return scene.but(agent=scene.patient, patient=scene.agent)


def roles_exchanged(first: Scene, second: Scene) -> bool:
    """Whether two scenes have the same two participants in each other's role."""
    other = exchange_roles(second)
    return not _alike(first.agent, second.agent) and all(
        _alike(getattr(first, role), getattr(other, role)) for role in ROLES
    )


def _alike(first: Participant | None, second: Participant | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.noun in second.noun.chain or second.noun in first.noun.chain


def _between_participants(first: Participant | None, second: Participant | None) -> Iterator[Difference]:
    if first is None or second is None:
        if first is not second:
            yield Difference.DETAIL
    elif not _alike(first, second):
        yield Difference.HEART
    else:
        yield from _between(first.noun, second.noun, Difference.HEART)
        yield from _between(first.quantity, second.quantity, Difference.CIRCUMSTANCE)
        yield from _between(first.modifier, second.modifier, Difference.CIRCUMSTANCE)


def _between(first: Concept | None, second: Concept | None, weight: Difference) -> Iterator[Difference]:
    """How two fillers of a slot differ: in a detail if one is missing or includes the other, else by the weight."""
    if first is second:
        return
    if first is None or second is None or first in second.chain or second in first.chain:
        yield Difference.DETAIL
    else:
        yield weight


def _opposed(first: Event, second: Event) -> bool:
    return first.name in second.opposites[:1] or second.name in first.opposites[:1]


def _included(first: Event, second: Event) -> bool:
    return first.name == second.name or first.name in second.generals[:1] or second.name in first.generals[:1]
