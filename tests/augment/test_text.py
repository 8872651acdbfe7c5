"""The augmentations of text against counts, subsequences and uniform distributions worked out by hand."""

import math
import subprocess
import sys
from collections import Counter
from itertools import combinations, groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from simcse_kit.augment.text import (
    TEXT_AUGMENTATIONS,
    crop,
    delete_one_word,
    open_text_augmentation,
    word_deletion,
    word_repetition,
)
from simcse_kit.augment.words import core, replace_core
from simcse_kit.errors import UserError

BY_WORD = ["crop", "word_deletion", "delete_one_word", "word_repetition"]
WORDS = st.lists(st.sampled_from(["a", "a", "b,", "c.", "Déjà", "(vu)", "--"]), max_size=40)
RATES = st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 0.99])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def is_subsequence(few, many):
    rest = iter(many)
    return all(word in rest for word in few)


def expected_left(count, rate):
    """Words left of ``count``: round half up by comparing distances, and one at least where there is one."""
    gone = min(range(count + 1), key=lambda whole: (abs(whole - rate * count), -whole))
    return max(count - gone, min(count, 1))


@given(words=WORDS, rate=RATES, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None)
def test_what_is_left_keeps_its_order_and_has_the_exact_length(words, rate, seed):
    text = "  ".join(words)
    cropped = crop(text, seeded(seed), rate=rate).split()
    assert len(cropped) == expected_left(len(words), rate)
    assert any(cropped == words[start : start + len(cropped)] for start in range(len(words) + 1))

    deleted = word_deletion(text, seeded(seed), rate=rate).split()
    assert len(deleted) == expected_left(len(words), rate)
    assert is_subsequence(deleted, words)

    one_less = delete_one_word(text, seeded(seed)).split()
    assert len(one_less) == (len(words) - 1 if len(words) > 1 else len(words))
    assert is_subsequence(one_less, words)


@given(count=st.integers(1, 60), rate=RATES, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None)
def test_repetition_doubles_distinct_words_where_they_stand(count, rate, seed):
    words = [f"w{number}" for number in range(count)]
    repeated = word_repetition(" ".join(words), seeded(seed), rate=rate).split()
    runs = [(word, len(list(run))) for word, run in groupby(repeated)]
    assert [word for word, _ in runs] == words
    assert {length for _, length in runs} <= {1, 2}
    assert len(repeated) - count <= min(count, max(2, math.floor(rate * count)))


@pytest.mark.parametrize("name", BY_WORD)
@pytest.mark.parametrize("text", ["", " ", "\t \n", "word", " word. "])
def test_a_text_never_becomes_empty(name, text):
    for seed in range(20):
        (augmented,) = open_text_augmentation(name)([text], seeded(seed))
        assert augmented if text else augmented == ""
        assert set(augmented.split()) == set(text.split())


def draws(augment, text, number, **settings):
    generator = seeded(17)
    return Counter(augment(text, generator, **settings) for _ in range(number))


# Each list holds all outcomes; a fair draw would fail with one seed in ten thousand.
@pytest.mark.parametrize(
    ("augment", "settings", "outcomes"),
    [
        (crop, {"rate": 0.4}, ["a b c", "b c d", "c d e"]),
        (word_deletion, {"rate": 0.4}, [" ".join(kept) for kept in combinations("abcde", 3)]),
        (delete_one_word, {}, [" ".join(kept) for kept in combinations("abcde", 4)]),
    ],
)
def test_every_outcome_is_equally_likely(augment, settings, outcomes):
    drawn = draws(augment, "a b c d e", 3000, **settings)
    assert set(drawn) == set(outcomes)
    assert chisquare([drawn[outcome] for outcome in outcomes]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("words", "rate", "most"), [("abcde", 0.75, 3), ("abcde", 0.32, 2), ("abc", 0.0, 2), ("a", 0.32, 1)]
)
def test_repetition_draws_how_many_and_then_which(words, rate, most):
    drawn = draws(word_repetition, " ".join(words), 6000, rate=rate)
    by_number = [[] for _ in range(most + 1)]
    for text, number in drawn.items():
        by_number[len(text.split()) - len(words)].append(number)
    assert chisquare([sum(numbers) for numbers in by_number]).pvalue > 1e-4
    for repeated, numbers in enumerate(by_number):
        assert len(numbers) == math.comb(len(words), repeated)
        assert len(numbers) == 1 or chisquare(numbers).pvalue > 1e-4


@pytest.mark.parametrize("name", BY_WORD)
def test_the_generator_decides_everything(name):
    texts = ["a b c d e f g h i j k l m n o p"] * 40
    augment = open_text_augmentation(name, rate=0.3 if name != "delete_one_word" else None)
    generator = seeded(5)
    before, global_state = generator.get_state(), torch.get_rng_state()
    first, second = augment(texts, generator), augment(texts, generator)
    assert first != second
    assert len(set(first)) > 5  # a batch's texts are augmented independently
    assert augment(texts, generator.set_state(before)) == first
    assert augment(texts, generator) == second
    assert torch.equal(torch.get_rng_state(), global_state)


def test_defaults_are_the_papers_and_none_means_default():
    text = " ".join(str(number) for number in range(100))
    for name in ("crop", "word_deletion"):
        assert len(open_text_augmentation(name, rate=None)([text], seeded(1))[0].split()) == 90
    lengths = [len(text.split()) for text in open_text_augmentation("word_repetition")([text] * 500, seeded(1))]
    assert (min(lengths), max(lengths)) == (100, 132)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("word_deltion", {}, r"no text augmentation 'word_deltion' \(did you mean 'word_deletion'\?\); known are crop"),
        ("crop", {"rate": 1.0}, r"crop: rate 1.0 is no share of the words"),
        ("crop", {"rate": -0.1}, r"crop: rate -0.1 is no share of the words"),
        ("delete_one_word", {"rate": 0.1}, r"delete_one_word takes no 'rate'; it takes no settings"),
        ("masked_lm", {"modle": "x"}, r"masked_lm takes no 'modle' \(did you mean 'model'\?\); it takes rate, model"),
        ("synonym", {"wordnet": "/no/such"}, r"no WordNet in /no/such \(it has no data.noun\); install it"),
        ("masked_lm", {"model": "/no/such/folder"}, r"model '/no/such/folder'"),
    ],
)
def test_mistakes_are_told_at_opening(name, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        open_text_augmentation(name, **settings)
    assert "\n" not in str(raised.value)


def test_the_registry_is_known_without_torch():
    code = "import sys, simcse_kit.augment.text as t; assert 'torch' not in sys.modules; print(*t.TEXT_AUGMENTATIONS)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == list(TEXT_AUGMENTATIONS)


@pytest.mark.parametrize(
    ("word", "bare", "replaced"),
    [
        ("car", "car", "the lift"),
        ("Car,", "Car", "The lift,"),
        ("(CAR).", "CAR", "(THE LIFT)."),
        ("«A", "A", "«The lift"),
        ("didn't!", "didn't", "the lift!"),
        ("x-x-x", "x-x-x", "the lift"),
        ("élan…", "élan", "the lift…"),
    ],
)
def test_punctuation_and_capitals_survive_a_replacement(word, bare, replaced):
    assert core(word) == bare
    assert replace_core(word, "the lift") == replaced


def test_punctuation_alone_is_no_word():
    assert [core(word) for word in ("--", "...", "'", "")] == [""] * 4
