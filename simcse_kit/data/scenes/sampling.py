"""Scenes at random, and changes to scenes whose effect on the meaning is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random

from .lexicon import Concept, Event, concepts, events
from .meaning import DETAILS, ROLES, Participant, Scene, exchange_roles

Change = Callable[[Scene], Scene | None]

_TRAITS = frozenset({"stative", "instant", "active", "dative", "single", "alike"})
_DETAIL_RATES = {"manner": 0.25, "instrument": 0.35, "place": 0.45, "time": 0.35}
_MAX_DETAILS = 2
_PLURAL_RATE = 0.25
_MODIFIER_RATE = 0.2
_DENIAL_RATE = 0.1
_VAGUE_RATE = 0.25
_HELD_OUT_WEIGHT = 3


class Sampler:
    """A source of scenes for one split.

    A change returns the changed scene, or None where it does not apply. What `imply` leaves is true whenever the
    original is; what the methods of `changes` leave tells of another occasion, or of something else altogether.
    """

    def __init__(self, split: str, rng: Random) -> None:
        self.split = split
        self.rng = rng
        self.changes: dict[str, Change] = {
            "quantity": self.change_quantity,
            "modifier": self.change_modifier,
            "tense": self.change_tense,
            "detail": self.change_detail,
            "denial": self.deny,
            "opposite": self.oppose,
            "roles": self.exchange,
            "participant": self.replace_noun,
            "event": self.other_event,
            "topic": self.other_topic,
        }
        self._implications: tuple[Change, ...] = (
            self.drop_detail,
            self.drop_modifier,
            self.drop_agent,
            self.generalize_event,
            self.generalize_noun,
            self.generalize_quantity,
            self.generalize_place,
        )

    def imply(self, scene: Scene) -> Scene | None:
        """Leave out a detail or put it in general words; a denial implies nothing of the kind."""
        if scene.negated:
            return None
        orders = self.rng.sample(self._implications, len(self._implications))
        return next((implied for change in orders if (implied := change(scene))), None)

    # Scenes

    def scene(self, event: Event | None = None) -> Scene:
        """A scene of an event, by default of any event of the split."""
        event = event or self.rng.choice(events(self.split))
        negated = self.rng.random() < _DENIAL_RATE
        agent = self._participant(event.agents, negated)
        patient = recipient = None
        if event.patients:
            kinds = event.patients & agent.noun.kinds if "alike" in event.traits else event.patients
            patient = self._participant(kinds, negated, agent, single="single" in event.traits)
        if event.recipients:
            recipient = self._participant(event.recipients, negated, agent, patient)
        scene = Scene(event, self.rng.choice(_tenses(event)), agent, patient, recipient, negated=negated)
        said = [name for name in DETAILS if self.rng.random() < _DETAIL_RATES[name]]
        pools = {
            name: _detail_pool(scene, name, self.split) for name in self.rng.sample(said, len(said))[:_MAX_DETAILS]
        }
        return scene.but(**{name: self._pick(pool) for name, pool in pools.items() if pool})

    def other_event(self, scene: Scene) -> Scene | None:
        """A scene of an unrelated event of the same topic, with the same agent and time where they fit."""
        kin = {scene.event.name, *scene.event.opposites, *scene.event.generals}
        same_topic = [
            event for event in events(self.split) if event.topic == scene.event.topic and event.name not in kin
        ]
        return self._keep_shared(self.scene(self.rng.choice(same_topic)), scene) if same_topic else None

    def other_topic(self, scene: Scene) -> Scene:
        """A scene of another topic, with the same agent and time where they fit."""
        other_topics = [event for event in events(self.split) if event.topic != scene.event.topic]
        return self._keep_shared(self.scene(self.rng.choice(other_topics)), scene)

    # What a scene implies

    def drop_detail(self, scene: Scene) -> Scene | None:
        """Leave out a manner, instrument, place or time."""
        said = [name for name in DETAILS if getattr(scene, name)]
        return scene.but(**{self.rng.choice(said): None}) if said else None

    def drop_modifier(self, scene: Scene) -> Scene | None:
        """Leave out a modifier ("a young pupil": "a pupil")."""
        return self._change_role(scene, lambda role, who: replace(who, modifier=None) if who.modifier else None)

    def drop_agent(self, scene: Scene) -> Scene | None:
        """Leave out who does it, where a passive can."""
        return scene.but(agent=None) if scene.patient and scene.event.passives else None

    def generalize_event(self, scene: Scene) -> Scene | None:
        """Tell of the event in more general words ("devour": "eat")."""
        general = scene.event.general
        return scene.but(event=general) if general and (scene.agent or general.passives) else None

    def generalize_noun(self, scene: Scene) -> Scene | None:
        """Name a participant in more general words ("an apple": "a piece of fruit")."""
        named = {getattr(scene, role).noun for role in ROLES if getattr(scene, role)}

        def generalize(role: str, who: Participant) -> Participant | None:
            wider = [concept for concept in who.noun.chain[1:] if concept not in named]
            return replace(who, noun=self.rng.choice(wider)) if wider else None

        return self._change_role(scene, generalize)

    def generalize_quantity(self, scene: Scene) -> Scene | None:
        """Be vague about a number ("seven": "several")."""
        return self._change_role(
            scene, lambda role, who: replace(who, quantity=who.quantity.general) if who.quantity.general else None
        )

    def generalize_place(self, scene: Scene) -> Scene | None:
        """Be vague about the place ("in the garden": "outdoors")."""
        return scene.but(place=scene.place.general) if scene.place and scene.place.general else None

    # What differs in a circumstance

    def change_quantity(self, scene: Scene) -> Scene | None:
        """Another number."""
        pool = _pool(frozenset({"number"} if scene.negated else {"quantity"}), self.split)

        def change(role: str, who: Participant) -> Participant | None:
            if role == "patient" and "single" in scene.event.traits:
                return None
            return replace(who, quantity=self._pick([other for other in pool if not _related(other, who.quantity)]))

        return self._change_role(scene, change)

    def change_modifier(self, scene: Scene) -> Scene | None:
        """Another modifier of the same kind ("a red car": "a blue car")."""

        def change(role: str, who: Participant) -> Participant | None:
            if who.modifier is None:
                return None
            return replace(who, modifier=self._pick(_others(who.modifier, _modifiers(who.noun, self.split))))

        return self._change_role(scene, change)

    def change_tense(self, scene: Scene) -> Scene | None:
        """Let what happened be still to come, and the other way round."""
        if scene.time or scene.tense == "present" or "stative" in scene.event.traits:
            return None
        return scene.but(tense="future" if scene.tense == "past" else "past")

    def change_detail(self, scene: Scene) -> Scene | None:
        """Another manner, instrument, place or time."""
        pools = {
            name: _others(said, _detail_pool(scene, name, self.split))
            for name in DETAILS
            if (said := getattr(scene, name)) is not None
        }
        names = [name for name, pool in pools.items() if pool]
        if not names:
            return None
        name = self.rng.choice(names)
        return scene.but(**{name: self._pick(pools[name])})

    # What contradicts a scene

    def deny(self, scene: Scene) -> Scene | None:
        """Deny what is affirmed, affirm what is denied; "many did not" would not deny "many did"."""
        exact = all("number" in who.quantity.kinds for role in ROLES if (who := getattr(scene, role)))
        return scene.but(negated=not scene.negated) if exact else None

    def oppose(self, scene: Scene) -> Scene | None:
        """The opposite event."""
        return scene.but(event=scene.event.opposite) if scene.event.opposite else None

    def exchange(self, scene: Scene) -> Scene | None:
        """Exchange the roles, where either could have the other's."""
        event, giver, taker = scene.event, scene.agent, scene.recipient or scene.patient
        kinds = event.recipients or event.patients
        if giver and taker and giver.noun.kinds & kinds and taker.noun.kinds & event.agents:
            return exchange_roles(scene)
        return None

    def replace_noun(self, scene: Scene) -> Scene | None:
        """Another participant, of the same sort where there is one ("a cat": "a dog")."""
        event = scene.event
        kinds = {"agent": event.agents, "patient": event.patients, "recipient": event.recipients}
        named = [getattr(scene, role).noun for role in ROLES if getattr(scene, role)]

        def change(role: str, who: Participant) -> Participant | None:
            pool = [
                noun for noun in _pool(kinds[role], self.split) if not any(_related(noun, other) for other in named)
            ]
            siblings = [noun for noun in pool if noun.general is who.noun.general]
            return replace(who, noun=self._pick(siblings or pool), modifier=None) if pool else None

        return self._change_role(scene, change)

    # Choices

    def _pick(self, pool: Sequence[Concept]) -> Concept:
        """One of some concepts; those that the split holds out are likelier."""
        weights = [_HELD_OUT_WEIGHT if concept.split == self.split else 1 for concept in pool]
        return self.rng.choices(pool, weights)[0]

    def _participant(
        self, kinds: frozenset[str], negated: bool, *others: Participant | None, single: bool = False
    ) -> Participant:
        """Somebody or something of some kinds, neither a special nor a general case of the others."""
        noun = self._pick(_pool(kinds, self.split))
        while any(other and _related(noun, other.noun) for other in others):
            noun = self._pick(_pool(kinds, self.split))
        modifiers = _modifiers(noun, self.split)
        modifier = self._pick(modifiers) if modifiers and self.rng.random() < _MODIFIER_RATE else None
        return Participant(noun, self._quantity(negated, single), modifier)

    def _quantity(self, negated: bool, single: bool) -> Concept:
        one, *numbers = _pool(frozenset({"number"}), self.split)
        if single or self.rng.random() >= _PLURAL_RATE:
            return one
        if negated or self.rng.random() >= _VAGUE_RATE:
            return self._pick(numbers)
        return self._pick(_pool(frozenset({"vague"}), self.split))

    def _keep_shared(self, scene: Scene, source: Scene) -> Scene:
        """The scene with the agent and time of another, where they fit."""
        who, others = source.agent, [other.noun for other in (scene.patient, scene.recipient) if other]
        if (
            who
            and who.noun.kinds & scene.event.agents
            and "alike" not in scene.event.traits
            and not any(_related(who.noun, other) for other in others)
        ):
            scene = scene.but(agent=who)
        if source.time in _detail_pool(scene, "time", self.split):
            scene = scene.but(time=source.time)
        return scene

    def _change_role(self, scene: Scene, change: Callable[[str, Participant], Participant | None]) -> Scene | None:
        """The scene with one participant changed, the first in random order that can be."""
        for role in self.rng.sample(ROLES, len(ROLES)):
            who = getattr(scene, role)
            if who and (changed := change(role, who)):
                return scene.but(**{role: changed})
        return None


@cache
def _pool(kinds: frozenset[str], split: str) -> tuple[Concept, ...]:
    """The concepts of any of some kinds that a split may use."""
    return tuple(concept for concept in concepts() if concept.kinds & kinds and concept.split in ("all", split))


@cache
def _modifiers(noun: Concept, split: str) -> tuple[Concept, ...]:
    return tuple(concept for concept in concepts() if concept.fits & noun.kinds and concept.split in ("all", split))


def _tenses(event: Event) -> tuple[str, ...]:
    """The tenses an event is told in, the likelier ones repeated."""
    if "stative" in event.traits:
        return ("past", "present")
    if "instant" in event.traits:
        return ("past", "past", "future")
    return ("past", "past", "present", "present", "future")


def _detail_pool(scene: Scene, name: str, split: str) -> tuple[Concept, ...]:
    """What could be said of a scene's manner, instrument, place or time."""
    event = scene.event
    if name == "time":
        times = () if "stative" in event.traits else _pool(frozenset({"time"}), split)
        return tuple(time for time in times if scene.tense in time.fits)
    kinds = {"manner": event.traits - _TRAITS, "instrument": event.instruments, "place": event.places}[name]
    return _pool(kinds, split)


def _others(said: Concept, pool: Sequence[Concept]) -> list[Concept]:
    """The concepts of a pool that exclude the one said: of the same kind, and neither more general nor more special."""
    return [concept for concept in pool if concept.kinds & said.kinds and not _related(concept, said)]


def _related(first: Concept, second: Concept) -> bool:
    return first in second.chain or second in first.chain
