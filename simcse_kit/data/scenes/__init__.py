"""Scenes."""

from collections.abc import Callable, Iterator
from random import Random

from simcse_kit.errors import UserError

from .grammar import Template, Wording, templates
from .lexicon import SPLITS
from .meaning import Scene, score
from .sampling import Sampler

import os, json

MIX = {"same": 0.2, "entailed": 0.22, "circumstance": 0.17, "contradiction": 0.2, "topic": 0.11, "unrelated": 0.1}
PARA = {"same": 1.0, "entailed": 0.6, "circumstance": 0.25, "contradiction": 0.25, "topic": 0.3, "unrelated": 0.3}


class _Writer:
    def __init__(self, split, seed, what):
        if split not in SPLITS:
            raise UserError(f"scenes have no split '{split}'")
        self.rng = Random(f"{what}/{split}/{seed}")
        self.sampler = Sampler(split, self.rng)
        self.templates = templates(split)

    def write(self, scene, wording, template=None, avoid=None):
        if template and template.suits(scene):
            return template.fill(scene, wording), template
        ts = [t for t in self.templates if t.suits(scene)]
        ts = [t for t in ts if t is not avoid] or ts
        t = self.rng.choice(ts)
        return t.fill(scene, wording), t

    def restyle(self, scene, wording, template, para):
        if self.rng.random() < para:
            return self.write(scene, Wording(self.rng, avoid=wording), avoid=template)[0]
        return self.write(scene, wording, template)[0]

    def entail(self, scene, n):
        for _ in range(n):
            if not scene.negated:
                scene = self.sampler.change(scene, self.sampler.entailments) or scene
        return scene

    def pair(self):
        kind = self.rng.choices(list(MIX), list(MIX.values()))[0]
        s = self.sampler
        scene = s.scene()
        other = {
            "same": lambda: scene,
            "entailed": lambda: self.entail(scene, self.rng.choice([1, 1, 2])),
            "circumstance": lambda: s.change(scene, s.circumstances),
            "contradiction": lambda: s.change(scene, s.contradictions),
            "topic": lambda: s.other_event(scene),
            "unrelated": lambda: s.other_topic(scene),
        }[kind]()
        if other is None:
            return None
        w = Wording(self.rng)
        a, t = self.write(scene, w)
        b = self.restyle(other, w, t, PARA[kind])
        if a == b:
            return None
        return (a, b, score(scene, other)) if self.rng.random() < 0.5 else (b, a, score(scene, other))

    def triplet(self):
        s = self.sampler
        scene = s.scene()
        w = Wording(self.rng)
        a, t = self.write(scene, w)
        cfg = json.loads(os.environ.get("CFG", "{}"))
        pos = self.entail(scene, self.rng.choice(cfg.get("ent", [0, 1, 1, 2])))
        wt = {"deny": 8, "oppose": 15, "exchange": 12, "replace_noun": 25, "change_quantity": 15, "change_modifier": 4, "change_tense": 4, "change_detail": 17}
        wt.update(cfg.get("wt", {}))
        neg = None
        while neg is None:
            neg = getattr(s, self.rng.choices(list(wt), list(wt.values()))[0])(scene)
        p = self.restyle(pos, w, t, cfg.get("pp", .85))
        n = self.restyle(neg, w, t, cfg.get("np", .5))
        if len({a, p, n}) < 3: return None
        return a, p, n

def _take(make, limit):
    seen = {}
    while len(seen) < limit:
        x = make()
        if x is not None:
            seen.setdefault(x)
    return list(seen)


def scene_sentences(split="train", *, seed=0, limit=None):
    w = _Writer(split, seed, "sentences")
    return _take(
        lambda: w.write(w.sampler.scene(), Wording(w.rng))[0],
        limit or {"train": 24000, "dev": 3000, "test": 3000}[split],
    )


def scene_triplets(split="train", *, seed=0, limit=None):
    w = _Writer(split, seed, "triplets")
    return _take(w.triplet, limit or {"train": 10000, "dev": 1000, "test": 1000}[split])


def scene_pairs(split="test", *, seed=0, limit=None):
    w = _Writer(split, seed, "pairs")
    return _take(w.pair, limit or {"train": 10000, "dev": 1000, "test": 1500}[split])
