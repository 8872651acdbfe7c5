from collections import Counter

import pytest

from simcse_kit.data.nli import triplets_from_pairs
from simcse_kit.data.readers import read_columns
from simcse_kit.data.senteval import data_root
from simcse_kit.errors import UserError

DATA = data_root()

PAIRS = [
    ("p", "e1", "entailment"),
    ("q", "only entailed", "entailment"),
    ("p", "c1", "contradiction"),
    ("p", "n1", "neutral"),
    ("p", "c2", "contradiction"),
    ("r", "only contradicted", "contradiction"),
    ("p", "e2", "entailment"),
    ("p", "e3", "entailment"),
    ("s", "e", "entailment"),
    ("s", "no gold", "-"),
    ("s", "c", "contradiction"),
]


def columns(pairs):
    return [list(column) for column in zip(*pairs, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_each_entailment_gets_a_contradiction_of_its_premise(seed):
    triplets = triplets_from_pairs(*columns(PAIRS), seed=seed)
    assert [t[:2] for t in triplets] == [("p", "e1"), ("p", "e2"), ("p", "e3"), ("s", "e")]
    negatives = Counter(t[2] for t in triplets if t[0] == "p")
    assert sorted(negatives.values()) == [1, 2]  # both are used before one is used again
    assert set(negatives) == {"c1", "c2"}
    assert triplets[-1][2] == "c"


def test_the_seed_decides_the_pairing_and_nothing_else():
    drawn = {tuple(triplets_from_pairs(*columns(PAIRS), seed=seed)) for seed in range(20)}
    assert len(drawn) == 2
    assert triplets_from_pairs(*columns(PAIRS), seed=3) == triplets_from_pairs(*columns(PAIRS), seed=3)


@pytest.mark.parametrize(
    ("entailment", "contradiction", "dropped"),
    [("Entailment", "CONTRADICTION", "-"), (0, 2, -1), ("0", "2", "-1"), (" entailment ", "contradiction", "")],
)
def test_labels_by_name_and_by_id(entailment, contradiction, dropped):
    labels = [entailment, contradiction, dropped, 1]
    assert triplets_from_pairs(["p"] * 4, ["e", "c", "x", "y"], labels, seed=0) == [("p", "e", "c")]


def test_mistakes():
    with pytest.raises(UserError, match=r"row 2: 'entailmnt' is no NLI label \(did you mean 'entailment'"):
        triplets_from_pairs(["p", "p"], ["a", "b"], ["neutral", "entailmnt"], seed=0)
    with pytest.raises(UserError, match="no triplets: of 2 premises none has both"):
        triplets_from_pairs(["p", "q"], ["a", "b"], ["entailment", "contradiction"], seed=0)


@pytest.mark.reference
@pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")
def test_on_real_pairs():
    pairs = read_columns(DATA / "nli" / "nli.jsonl", ["premise", "hypothesis", "label"], labels=["label"])
    labelled = set(zip(*pairs.values(), strict=True))
    contradicted = {premise for premise, _, label in labelled if label == "contradiction"}
    expected = Counter((p, h) for p, h, label in labelled if label == "entailment" and p in contradicted)
    triplets = triplets_from_pairs(*pairs.values(), seed=42)
    assert Counter(triplet[:2] for triplet in triplets) == expected
    assert all((anchor, negative, "contradiction") in labelled for anchor, _, negative in triplets)
