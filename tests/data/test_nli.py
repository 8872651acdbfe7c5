from collections import Counter

import pytest

from simcse_kit.data.nli import HARD_NEGATIVES, tuples_from_pairs
from simcse_kit.data.readers import read_columns
from simcse_kit.data.senteval import data_root
from simcse_kit.errors import UserError

DATA = data_root()

TRIPLETS, QUADRUPLETS = HARD_NEGATIVES.values()
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
    triplets = tuples_from_pairs(*columns(PAIRS), TRIPLETS, seed=seed)
    assert [t[:2] for t in triplets] == [("p", "e1"), ("p", "e2"), ("p", "e3"), ("s", "e")]
    negatives = Counter(t[2] for t in triplets if t[0] == "p")
    assert sorted(negatives.values()) == [1, 2]  # both are used before one is used again
    assert set(negatives) == {"c1", "c2"}
    assert triplets[-1][2] == "c"


def test_the_seed_decides_the_pairing_and_nothing_else():
    drawn = {tuple(tuples_from_pairs(*columns(PAIRS), TRIPLETS, seed=seed)) for seed in range(20)}
    assert len(drawn) == 2
    assert tuples_from_pairs(*columns(PAIRS), TRIPLETS, seed=3) == tuples_from_pairs(*columns(PAIRS), TRIPLETS, seed=3)


def test_a_quadruplet_has_a_contradiction_and_a_neutral_hypothesis_and_needs_both():
    pairs = [*PAIRS, ("p", "n2", "neutral"), ("q", "n3", "neutral")]  # s has no neutral one, q no contradiction
    drawn = set()
    for seed in range(40):
        quadruplets = tuples_from_pairs(*columns(pairs), QUADRUPLETS, seed=seed)
        assert [q[:2] for q in quadruplets] == [("p", "e1"), ("p", "e2"), ("p", "e3")]
        first, second, third = (q[2:] for q in quadruplets)
        assert {first[0], second[0]} == {"c1", "c2"} and {first[1], second[1]} == {"n1", "n2"}
        assert third == first  # in turn
        drawn.add(first)
    assert len(drawn) == 4  # each kind is shuffled by itself


@pytest.mark.parametrize(
    ("entailment", "contradiction", "dropped"),
    [("Entailment", "CONTRADICTION", "-"), (0, 2, -1), ("0", "2", "-1"), (" entailment ", "contradiction", "")],
)
def test_labels_by_name_and_by_id(entailment, contradiction, dropped):
    labels = [entailment, contradiction, dropped, 1]
    assert tuples_from_pairs(["p"] * 4, ["e", "c", "x", "y"], labels, TRIPLETS, seed=0) == [("p", "e", "c")]


def test_mistakes():
    with pytest.raises(UserError, match=r"row 2: 'entailmnt' is no NLI label \(did you mean 'entailment'"):
        tuples_from_pairs(["p", "p"], ["a", "b"], ["neutral", "entailmnt"], TRIPLETS, seed=0)
    with pytest.raises(UserError, match=r"no rows: of 2 premises none .*\(entailment, contradiction\)"):
        tuples_from_pairs(["p", "q"], ["a", "b"], ["entailment", "contradiction"], TRIPLETS, seed=0)
    with pytest.raises(UserError, match=r"no rows: of 1 premises none .*\(entailment, contradiction, neutral\)"):
        tuples_from_pairs(["p", "p"], ["a", "b"], ["entailment", "contradiction"], QUADRUPLETS, seed=0)


@pytest.mark.reference
@pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")
@pytest.mark.parametrize("negatives", [TRIPLETS, QUADRUPLETS])
def test_on_real_pairs(negatives):
    pairs = read_columns(DATA / "nli" / "nli.jsonl", ["premise", "hypothesis", "label"], labels=["label"])
    labelled = set(zip(*pairs.values(), strict=True))
    of_label = [{premise for premise, _, label in labelled if label == negative} for negative in negatives]
    complete = set.intersection(*of_label)
    expected = Counter((p, h) for p, h, label in labelled if label == "entailment" and p in complete)
    rows = tuples_from_pairs(*pairs.values(), negatives, seed=42)
    assert Counter(row[:2] for row in rows) == expected
    for anchor, _, *texts in rows:
        assert all((anchor, text, label) in labelled for text, label in zip(texts, negatives, strict=True))
