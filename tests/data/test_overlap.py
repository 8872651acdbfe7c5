"""Overlap of training and evaluation text, against sets of strings."""

import csv
import re

import numpy as np
import pytest

from simcse_kit.data.overlap import (
    FINGERPRINTS_FILE,
    Overlap,
    fingerprints,
    overlap,
    read_fingerprints,
    write_fingerprints,
)
from simcse_kit.errors import UserError

TRAIN = [
    ["A man's guitar.", "Snow falls", "", "...", "Änderung!"],
    ["He plays.", "It snows", "Nothing", "Two", "Two"],
]


def test_copies_that_differ_in_case_spacing_and_punctuation_are_one_sentence():
    evaluation = ["a man 's guitar", "A MAN'S GUITAR!", "two", "änderung", "it snowed", "?"]
    assert overlap(fingerprints(TRAIN), evaluation) == Overlap(train_rows=3, of_rows=5, sentences=3, of_sentences=5)


def test_a_text_without_letters_matches_nothing():
    assert overlap(fingerprints([["...", ""]]), ["!!", "", "a"]).train_rows == 0


def test_random_text_is_counted_as_sets_of_normalised_strings_count_it():
    rng = np.random.default_rng(0)
    words = ["a", "b", "C", "c", "d e", "d,e", "-"]
    columns = [[" ".join(rng.choice(words, size=2)) for _ in range(60)] for _ in range(3)]
    evaluation = [" ".join(rng.choice(words, size=2)) for _ in range(15)]

    def bare(text):
        return re.sub(r"[\W_]+", "", text).casefold()

    seen = {bare(text) for text in evaluation} - {""}
    rows = sum(any(bare(text) in seen for text in row) for row in zip(*columns, strict=True))
    found = overlap(fingerprints(columns), evaluation)
    assert 0 < rows < 60
    assert (found.train_rows, found.of_rows) == (rows, 60)
    assert found.sentences == len(seen & {bare(text) for column in columns for text in column})
    assert found.of_sentences == len({bare(text) for text in evaluation})


def test_a_model_that_goes_on_from_another_has_seen_the_text_of_both(tmp_path):
    assert read_fingerprints(tmp_path) is None
    first, second = fingerprints([["one"], ["two"]]), fingerprints([["three", "four"]])
    write_fingerprints(tmp_path, first, None)
    np.testing.assert_array_equal(read_fingerprints(tmp_path), first)
    write_fingerprints(tmp_path, second, first)
    both = overlap(read_fingerprints(tmp_path), ["two", "three", "five"])
    assert both == Overlap(train_rows=2, of_rows=3, sentences=2, of_sentences=3)


@pytest.mark.parametrize("content", [b"", b"no array", np.lib.format.magic(1, 0)])
def test_a_damaged_file_is_said(tmp_path, content):
    (tmp_path / FINGERPRINTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{FINGERPRINTS_FILE}: cannot be read[^\n]*$"):
        read_fingerprints(tmp_path)


def test_another_array_is_refused(tmp_path):
    np.save(tmp_path / FINGERPRINTS_FILE, np.zeros(3))
    with pytest.raises(UserError, match="holds no fingerprints"):
        read_fingerprints(tmp_path)


@pytest.mark.reference
def test_the_nli_triplets_share_509_rows_with_the_sts_sets_and_the_text_of_consert_is_theirs(data_dir):
    with (data_dir / "nli" / "nli_triplets.csv").open(encoding="utf-8", newline="") as file:
        columns = list(zip(*(row.values() for row in csv.DictReader(file)), strict=True))
    sts = (data_dir / "text" / "sts_unlabeled_dedup.txt").read_text(encoding="utf-8").split("\n")
    found = overlap(fingerprints(columns), sts)
    assert (found.train_rows, found.of_rows) == (509, 29_722)
    everything = overlap(fingerprints([sts]), sts)
    assert everything.sentences >= everything.of_sentences - 1  # but the empty last line
