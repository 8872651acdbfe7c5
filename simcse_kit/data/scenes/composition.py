"""Sentences, triplets and graded pairs made of scenes."""

from random import Random

from .grammar import Template, Wording, templates
from .meaning import Scene, score
from .sampling import Change, Sampler

# Shares in percent of what the second scene of a pair is, measured by the first. Most pairs differ in something that
# the words hardly show: that is what the pairs are there to measure.
_PAIRS = {
    "same": 20,
    "implied": 20,
    "quantity": 7,
    "modifier": 3,
    "tense": 3,
    "detail": 5,
    "denial": 11,
    "opposite": 6,
    "roles": 5,
    "participant": 6,
    "event": 7,
    "topic": 7,
}
# The same for the contradictions of the triplets.
_CONTRADICTIONS = {
    "quantity": 18,
    "modifier": 6,
    "tense": 4,
    "detail": 14,
    "denial": 14,
    "opposite": 16,
    "roles": 4,
    "participant": 24,
}
# How often the second sentence is a paraphrase of what it says, in other words and another construction. Were the
# contradictions always worded like their anchors and the entailments never, then drawing all sentences together would
# pay in training, and would hurt every other use of the encoder.
_PARAPHRASED_PAIRS = {"same": 1.0, "implied": 0.6}
_PARAPHRASED_OTHER_PAIRS = 0.3
_PARAPHRASED_ENTAILMENTS = 0.9
_PARAPHRASED_CONTRADICTIONS = 0.75
_IMPLIED_ENTAILMENTS = 0.15


class Composer:
    """Puts random scenes of one split into words, together with scenes related to them.

    A pair or triplet is None where two of its sentences happen to be the same.
    """

    def __init__(self, split: str, rng: Random) -> None:
        self._rng = rng
        self._sampler = Sampler(split, rng)
        self._templates = templates(split)

    def sentence(self) -> str:
        """A sentence."""
        return self._write(self._sampler.scene(), Wording(self._rng))[0]

    def triplet(self) -> tuple[str, str, str] | None:
        """An anchor, a sentence that it entails and a sentence that it excludes."""
        scene, other = self._related(self._sampler.changes[self._draw(_CONTRADICTIONS)])
        implied = self._sampler.imply(scene) if self._rng.random() < _IMPLIED_ENTAILMENTS else None
        wording = Wording(self._rng)
        anchor, template = self._write(scene, wording)
        entailment = self._write_related(implied or scene, wording, template, _PARAPHRASED_ENTAILMENTS)
        contradiction = self._write_related(other, wording, template, _PARAPHRASED_CONTRADICTIONS)
        return (anchor, entailment, contradiction) if anchor != entailment else None

    def pair(self) -> tuple[str, str, float] | None:
        """Two sentences and how alike in meaning they are, from 0 to 5."""
        relation = self._draw(_PAIRS)
        relate = {"same": lambda scene: scene, "implied": self._sampler.imply, **self._sampler.changes}[relation]
        scene, other = self._related(relate)
        wording = Wording(self._rng)
        first, template = self._write(scene, wording)
        rate = _PARAPHRASED_PAIRS.get(relation, _PARAPHRASED_OTHER_PAIRS)
        second = self._write_related(other, wording, template, rate)
        if self._rng.random() < 0.5:
            first, second = second, first
        return (first, second, score(scene, other)) if first != second else None

    def _related(self, change: Change) -> tuple[Scene, Scene]:
        """A scene to which a change applies, and the changed scene."""
        while True:
            scene = self._sampler.scene()
            if changed := change(scene):
                return scene, changed

    def _write(self, scene: Scene, wording: Wording, but: Template | None = None) -> tuple[str, Template]:
        """A scene in any template that suits it, by preference another than `but`."""
        orders = self._rng.sample(self._templates, len(self._templates))
        suitable = (template for template in orders if template is not but and template.suits(scene))
        template = next(suitable, but)
        assert template is not None, f"no template suits {scene}"
        return template.fill(scene, wording), template

    def _write_related(self, scene: Scene, wording: Wording, template: Template, paraphrased: float) -> str:
        """A scene in other words than those of `wording` and `template`, or as far as possible in the same."""
        if self._rng.random() < paraphrased:
            return self._write(scene, Wording(self._rng, avoid=wording), but=template)[0]
        return template.fill(scene, wording) if template.suits(scene) else self._write(scene, wording)[0]

    def _draw(self, shares: dict[str, int]) -> str:
        return self._rng.choices(list(shares), list(shares.values()))[0]
