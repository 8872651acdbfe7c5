"""How a scene is put into words: templates with slots, and the clause that fills them with words that agree."""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random

from .lexicon import Concept, table
from .meaning import DETAILS, ROLES, Participant, Scene
from .morphology import article, copula, finite, past_participle, present_participle

_SLOT = re.compile(r"\{(\w+)\}")
PRONOUNS = ("someone",)

CONDITIONS: dict[str, Callable[[Scene], bool]] = {
    "past": lambda scene: scene.tense == "past",
    "present": lambda scene: scene.tense == "present",
    "future": lambda scene: scene.tense == "future",
    "affirmative": lambda scene: not scene.negated,
    "negative": lambda scene: scene.negated,
    "action": lambda scene: "stative" not in scene.event.traits,
    "ongoing": lambda scene: not scene.event.traits & {"stative", "instant"},
    "timeless": lambda scene: scene.time is None,
    "thing": lambda scene: scene.patient is not None and not scene.patient.noun.is_person,
}
"""What a template may ask of a scene in the column "when"."""

_SAYS = {
    "agent": {"agent"},
    "an_agent": {"agent"},
    "patient": {"patient"},
    "a_patient": {"patient"},
    "recipient": {"recipient"},
    "object": {"patient", "recipient"},
    "oblique": {"recipient"},
    "undergoer": {"patient", "recipient"},
    "complement": {"agent", "patient"},
}
"""The roles that a slot puts into words."""

_NEEDS: dict[str, Callable[[Scene], bool]] = {
    "agent": lambda scene: scene.agent is not None,
    "an_agent": lambda scene: _can_be_indefinite(scene.agent),
    "be": lambda scene: not _is_vague(scene.agent) and not _is_vague(scene.patient),
    "the_one": lambda scene: not _is_vague(scene.agent),
    "patient": lambda scene: scene.patient is not None,
    "patient_is": lambda scene: not _is_vague(scene.patient),
    "a_patient": lambda scene: _can_be_indefinite(scene.patient),
    "recipient": lambda scene: scene.recipient is not None,
    "is_done": lambda scene: bool(scene.event.passives),
    "done": lambda scene: bool(scene.event.passives),
    "has_been_done": lambda scene: bool(scene.event.passives),
    "is_going_to_be_done": lambda scene: bool(scene.event.passives),
    "is_given": lambda scene: "dative" in scene.event.traits,
    "undergoes": lambda scene: bool(scene.event.converses) and scene.agent is not None,
    "time": lambda scene: scene.time is not None,
    "place": lambda scene: scene.place is not None,
}
"""What a slot asks of a scene."""


class Wording:
    """Choices between ways of saying the same, each made once and remembered.

    Scenes put into words with one wording use the same words for what they share. A paraphrase avoids the words,
    articles and contractions that another wording chose, where there is an alternative.
    """

    def __init__(self, rng: Random, avoid: "Wording | None" = None) -> None:
        self._rng = rng
        self._avoided = avoid._chosen if avoid else {}
        self._chosen: dict[Hashable, str] = {}

    def choose(self, what: Hashable, options: Sequence[str]) -> str:
        """One of the options, the one remembered for `what` if it is among them."""
        if self._chosen.get(what) not in options:
            fresh = [option for option in options if option != self._avoided.get(what)]
            self._chosen[what] = self._rng.choice(fresh or options)
        return self._chosen[what]


@dataclass(frozen=True)
class Template:
    """One construction of the language.

    Attributes:
        text: The sentence without capital and full stop, slots in braces.
        split: "all", or the only split that uses it.
        conditions: Keys of CONDITIONS that the scene has to meet.
    """

    text: str
    split: str
    conditions: tuple[str, ...]

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots of the text, in order."""
        return tuple(_SLOT.findall(self.text))

    @cached_property
    def says(self) -> frozenset[str]:
        """The roles that the slots put into words."""
        return frozenset(role for slot in self.slots for role in _SAYS.get(slot, ()))

    def suits(self, scene: Scene) -> bool:
        """Whether the template says all of a scene, and correctly."""
        return (
            all(role in self.says for role in ROLES if getattr(scene, role))
            and all(CONDITIONS[condition](scene) for condition in self.conditions)
            and all(_NEEDS[slot](scene) for slot in self.slots if slot in _NEEDS)
        )

    def fill(self, scene: Scene, wording: Wording) -> str:
        """A scene that the template suits, as a sentence."""
        clause = _Clause(scene, wording, self.slots)
        text = _SLOT.sub(lambda slot: getattr(clause, slot[1])(), self.text)
        text = " ".join(text.split()).replace(" ,", ",")
        return text[0].upper() + text[1:] + "."


@cache
def templates(split: str) -> tuple[Template, ...]:
    """The templates that a split may use."""
    rows = (Template(text, belongs, tuple(when.split())) for belongs, when, text in table("templates.txt"))
    return tuple(template for template in rows if template.split in ("all", split))


class _Clause:
    """A scene on its way into words: one method for each slot of the templates."""

    def __init__(self, scene: Scene, wording: Wording, slots: tuple[str, ...]) -> None:
        self.scene = scene
        self.event = scene.event
        self.wording = wording
        self.slots = slots

    # Noun phrases

    def agent(self) -> str:
        return self._noun_phrase("agent")

    def an_agent(self) -> str:
        return self._noun_phrase("agent", indefinite=True)

    def patient(self) -> str:
        return self._noun_phrase("patient")

    def a_patient(self) -> str:
        return self._noun_phrase("patient", indefinite=True)

    def recipient(self) -> str:
        return self._noun_phrase("recipient")

    def undergoer(self) -> str:
        """The subject of the converse: who gets something, or to whom or what it is done."""
        return self.recipient() if self.scene.recipient else self.patient()

    def complement(self) -> str:
        """What follows the converse: "a car from the chef", or the agent."""
        return f"{self.patient()} from {self.agent()}" if self.scene.recipient else self.agent()

    def object(self) -> str:
        """What follows the active verb: "the nurse", "a car to the nurse", "the nurse a car", or nothing."""
        if not self.scene.patient:
            return ""
        if not self.scene.recipient:
            return self.patient()
        orders = ["to", "double"] if "dative" in self.event.traits and " " not in self._verb() else ["to"]
        if self.wording.choose("object", orders) == "to":
            return f"{self.patient()} to {self.recipient()}"
        return f"{self.recipient()} {self.patient()}"

    def oblique(self) -> str:
        """What follows the passive verb: "to the nurse", or nothing."""
        return f"to {self.recipient()}" if self.scene.recipient else ""

    # Verbs

    def does(self) -> str:
        return self._finite(self._verb(), "agent")

    def did(self) -> str:
        return self._finite(self._verb(), "agent", negatable=False)

    def do(self) -> str:
        return self._verb()

    def doing(self) -> str:
        return present_participle(self._verb())

    def is_going_to_do(self) -> str:
        return self._finite(f"be going to {self._verb()}", "agent", tense="present")

    def has_done(self) -> str:
        return self._has("agent") + past_participle(self._verb())

    def is_done(self) -> str:
        return self._finite(f"be {self.done()}", "patient")

    def is_given(self) -> str:
        return self._finite(f"be {self.done()}", "recipient")

    def done(self) -> str:
        return past_participle(self.wording.choose(self.event.name, self.event.passives))

    def is_going_to_be_done(self) -> str:
        return self._finite(f"be going to be {self.done()}", "patient", tense="present")

    def has_been_done(self) -> str:
        return self._has("patient") + f"been {self.done()}"

    def undergoes(self) -> str:
        verb = self.wording.choose((self.event.name, "converse"), self.event.converses)
        return self._finite(verb, self._undergoing)

    # Other words that agree

    def be(self) -> str:
        return copula(self.scene.tense, plural=False)

    def agent_is(self) -> str:
        return copula(self.scene.tense, plural=self._is_plural("agent"))

    def patient_is(self) -> str:
        return copula(self.scene.tense, plural=self._is_plural("patient"))

    def the_one(self) -> str:
        return "the ones" if self._is_plural("agent") else "the one"

    def who(self) -> str:
        return self._who("agent")

    def who_undergoes(self) -> str:
        return self._who(self._undergoing)

    # Details

    def time(self) -> str:
        return self._detail("time")

    def place(self) -> str:
        return self._detail("place")

    def details(self) -> str:
        """The details that have no slot of their own."""
        return " ".join(self._detail(name) for name in DETAILS if name not in self.slots)

    @property
    def _undergoing(self) -> str:
        return "recipient" if self.scene.recipient else "patient"

    def _participant(self, role: str) -> Participant:
        participant: Participant = getattr(self.scene, role)
        return participant

    def _is_plural(self, role: str) -> bool:
        return self._participant(role).is_plural

    def _who(self, role: str) -> str:
        return "who" if self._participant(role).noun.is_person else "that"

    def _word(self, concept: Concept | None) -> str:
        return self.wording.choose(concept, concept.words) if concept else ""

    def _detail(self, name: str) -> str:
        return self._word(getattr(self.scene, name))

    def _verb(self) -> str:
        return self.wording.choose(self.event.name, self.event.words)

    def _finite(self, verb: str, subject: str, *, tense: str | None = None, negatable: bool = True) -> str:
        negation = self.wording.choose("not", ("not", "n't")) if self.scene.negated and negatable else ""
        return finite(
            verb,
            tense or self.scene.tense,
            plural=self._is_plural(subject),
            progressive=not verb.startswith("be going") and CONDITIONS["ongoing"](self.scene),
            negation=negation,
        )

    def _has(self, subject: str) -> str:
        return ("have " if self._is_plural(subject) else "has ") + ("not " if self.scene.negated else "")

    def _noun_phrase(self, role: str, *, indefinite: bool = False) -> str:
        """Article or quantity, modifier and noun; what a denial is about is definite ("did not open the door")."""
        participant = self._participant(role)
        noun, quantity, modifier = participant.noun, participant.quantity, self._word(participant.modifier)
        the = not indefinite and (self.scene.negated or self.wording.choose((role, "article"), ("the", "a")) == "the")
        if participant.is_plural:
            word = self.wording.choose(noun, [word for word in noun.words if word not in PRONOUNS])
            number = self._word(quantity)
            number = f"the {number}" if the and "number" in quantity.kinds and " " not in number else number
            return " ".join([number, modifier, noun.plurals[noun.words.index(word)]])
        word = self.wording.choose(noun, [word for word in noun.words if not modifier or word not in PRONOUNS])
        if word in PRONOUNS:
            return word
        phrase = f"{modifier} {word}".strip()
        return f"the {phrase}" if the else f"{article(phrase)} {phrase}"


def _is_vague(participant: Participant | None) -> bool:
    return participant is not None and "vague" in participant.quantity.kinds


def _can_be_indefinite(participant: Participant | None) -> bool:
    return participant is not None and "the" not in participant.quantity.words[0].split()
