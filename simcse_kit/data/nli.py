"""Rows with hard negatives from natural language inference pairs, as supervised SimCSE trains on them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle

from simcse_kit.data.rows import did_you_mean
from simcse_kit.errors import UserError

HARD_NEGATIVES = {"nli_triplets": ("contradiction",), "nli_quadruplets": ("contradiction", "neutral")}
"""The labels of a row's hard negatives, by what the rows are called in a recipe (SimCSE's Table 7 has both)."""

_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}  # ids of SNLI and MultiNLI on the hub
NLI_CLASSES = {"contradiction": 0, "entailment": 1, "neutral": 2}
"""Class ids, in the order of SBERT's softmax."""

_NO_GOLD = ("-", "-1", "")  # the annotators did not agree


def tuples_from_pairs(
    premises: Sequence[str],
    hypotheses: Sequence[str],
    labels: Sequence[str | int],
    negatives: Sequence[str],
    *,
    seed: int,
) -> list[tuple[str, ...]]:
    """Turn labelled pairs into (premise, an entailed hypothesis of it, a hypothesis of it of each negative label).

    As in SimCSE's ``nli_for_simcse.csv`` (Gao et al. 2021, section 4), every entailment gives one row if its premise
    has a hypothesis of each negative label too, and none otherwise. Those of a premise and a label are shuffled and
    handed out in turn, so that each is used before one is used twice.

    Args:
        premises: n texts; equal strings are one premise.
        hypotheses: n texts.
        labels: n labels: ``entailment``, ``neutral``, ``contradiction`` in any case, or 0, 1, 2 in this order. Rows
            labelled ``-``, ``-1`` or nothing have no gold label and are dropped.
        negatives: labels of the hard negatives, in their order in a row: one of ``HARD_NEGATIVES``.
        seed: decides which negatives go with which entailment.

    Returns:
        Rows of 2 + len(negatives) texts, grouped by premise in order of first appearance.

    Raises:
        UserError: for a label that is none of these (row named), and if there is no row at all.
    """
    hypotheses_of: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, (premise, hypothesis, label) in enumerate(zip(premises, hypotheses, labels, strict=True), start=1):
        name = _label_name(label, row)
        if name is not None:
            hypotheses_of[premise][name].append(hypothesis)

    shuffle = random.Random(seed).shuffle
    rows: list[tuple[str, ...]] = []
    for premise, by_label in hypotheses_of.items():
        for label in negatives:
            shuffle(by_label[label])
        in_turn = (cycle(by_label[label]) for label in negatives)  # nothing where the premise has no such hypothesis
        rows.extend((premise, *texts) for texts in zip(by_label["entailment"], *in_turn, strict=False))
    if not rows:
        needed = ", ".join(["entailment", *negatives])
        raise UserError(
            f"no rows: of {len(hypotheses_of)} premises none has a hypothesis of each label that is needed ({needed})"
        )
    return rows


def classes_of_pairs(labels: Sequence[str | int]) -> list[int | None]:
    """Turn the labels of NLI pairs into class ids.

    Args:
        labels: n labels, as for ``tuples_from_pairs``.

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
