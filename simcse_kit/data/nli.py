"""Triplets from natural language inference pairs, as supervised SimCSE trains on them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle

from simcse_kit.data.rows import did_you_mean
from simcse_kit.errors import UserError

Triplet = tuple[str, str, str]
"""(anchor, entailment, contradiction)"""

_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}  # ids of SNLI and MultiNLI on the hub
NLI_CLASSES = {"contradiction": 0, "entailment": 1, "neutral": 2}
"""Class ids, in the order of SBERT's softmax."""

_NO_GOLD = ("-", "-1", "")  # the annotators did not agree


def triplets_from_pairs(
    premises: Sequence[str], hypotheses: Sequence[str], labels: Sequence[str | int], *, seed: int
) -> list[Triplet]:
    """Turn labelled pairs into (premise, an entailed hypothesis of it, a contradicted hypothesis of it).

    As in SimCSE's ``nli_for_simcse.csv`` (Gao et al. 2021, section 4), every entailment gives one triplet if its
    premise has a contradiction too, and none otherwise; neutral pairs are not used. The contradictions of a premise
    are shuffled and handed out in turn, so that each is used before one is used twice.

    Args:
        premises: n texts; equal strings are one premise.
        hypotheses: n texts.
        labels: n labels: ``entailment``, ``neutral``, ``contradiction`` in any case, or 0, 1, 2 in this order. Rows
            labelled ``-``, ``-1`` or nothing have no gold label and are dropped.
        seed: decides which contradiction goes with which entailment.

    Returns:
        The triplets, grouped by premise in order of first appearance.

    Raises:
        UserError: for a label that is none of these (row named), and if there is no triplet at all.
    """
    hypotheses_of: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, (premise, hypothesis, label) in enumerate(zip(premises, hypotheses, labels, strict=True), start=1):
        name = _label_name(label, row)
        if name is not None:
            hypotheses_of[premise][name].append(hypothesis)

    shuffle = random.Random(seed).shuffle
    triplets: list[Triplet] = []
    for premise, by_label in hypotheses_of.items():
        entailments, contradictions = by_label["entailment"], by_label["contradiction"]
        shuffle(contradictions)
        pairs = zip(entailments, cycle(contradictions), strict=False)  # none where there is no contradiction
        triplets.extend((premise, entailment, contradiction) for entailment, contradiction in pairs)
    if not triplets:
        raise UserError(
            f"no triplets: of {len(hypotheses_of)} premises none has both an entailment and a contradiction"
        )
    return triplets


def classes_of_pairs(labels: Sequence[str | int]) -> list[int | None]:
    """Turn the labels of NLI pairs into class ids.

    Args:
        labels: n labels, as for ``triplets_from_pairs``.

    Returns:
        n ids of ``NLI_CLASSES``; None for a row without gold label.

    Raises:
        UserError: for a label that is none of these (row named).
    """
    names = [_label_name(label, row) for row, label in enumerate(labels, start=1)]
    return [None if name is None else NLI_CLASSES[name] for name in names]


def _label_name(label: str | int, row: int) -> str | None:
    """Return the label's name, or None for a row without gold label."""
    key = str(label).strip().lower()
    if key in _NO_GOLD:
        return None
    name = _LABELS.get(key, key)
    if name not in _LABELS.values():
        raise UserError(
            f"row {row}: {label!r} is no NLI label{did_you_mean(key, _LABELS.values())}; "
            "needed are entailment, neutral, contradiction or 0, 1, 2"
        )
    return name
