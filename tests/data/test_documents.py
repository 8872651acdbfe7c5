import gzip
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from simcse_kit.data import documents
from simcse_kit.data.documents import WINDOWS, document_lines, positives_from_documents
from simcse_kit.errors import UserError

LINES = ["one 1", "one 2", "", "alone", " ", "", "two 1", "two 2", "two 3", "two 4", "two 5"]


def test_next_sentence():
    assert positives_from_documents(LINES, WINDOWS["next_sentence"], seed=3) == [
        ("one 1", "one 2"),
        ("two 1", "two 2"),
        ("two 2", "two 3"),
        ("two 3", "two 4"),
        ("two 4", "two 5"),
    ]


def test_the_next_three_sentences_are_equally_likely():
    drawn = [dict(positives_from_documents(LINES, WINDOWS["next_three_sentences"], seed=seed)) for seed in range(900)]
    following = {"one 1": [2], "two 1": [2, 3, 4], "two 2": [3, 4, 5], "two 3": [4, 5], "two 4": [5]}
    for anchor, numbers in following.items():
        counts = Counter(pairs[anchor] for pairs in drawn)
        assert set(counts) == {f"{anchor[:-1]}{number}" for number in numbers}
        assert len(counts) == 1 or chisquare(list(counts.values())).pvalue > 1e-4
    assert len({(pairs["two 1"], pairs["two 2"]) for pairs in drawn}) == 9  # each anchor draws for itself


@given(st.lists(st.sampled_from(["", "  ", "x"]), max_size=40), st.integers(1, 4), st.integers(0, 2**32))
def test_pairs_stay_in_their_document_and_window(kinds, window, seed):
    lines = [f"{kind}{place}" if kind.strip() else kind for place, kind in enumerate(kinds)]
    expected = [line for line, follower in pairwise(lines) if line.strip() and follower.strip()]
    if not expected:
        with pytest.raises(UserError, match="no pairs"):
            positives_from_documents(lines, window, seed=seed)
        return
    pairs = positives_from_documents(lines, window, seed=seed)
    assert pairs == positives_from_documents(iter(lines), window, seed=seed)
    assert [anchor for anchor, _ in pairs] == expected
    for anchor, positive in pairs:
        first, last = lines.index(anchor), lines.index(positive)
        assert 1 <= last - first <= window
        assert all(line.strip() for line in lines[first : last + 1])


def test_files_end_documents_too(tmp_path):
    plain, zipped = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("a 1\na 2\n\na 3\n", encoding="utf-8")
    zipped.write_bytes(gzip.compress(b"\xef\xbb\xbfb 1\r\nb 2"))
    pairs = positives_from_documents(document_lines([plain, zipped]), 1, seed=0)
    assert pairs == [("a 1", "a 2"), ("b 1", "b 2")]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no pairs: of 3 documents none has two sentences"):
        positives_from_documents(["a", "", "b", "", "", "c"], 1, seed=0)
    with pytest.raises(UserError, match=r"rows\.csv: documents are read from \.txt files"):
        list(document_lines([tmp_path / "rows.csv"]))
    with pytest.raises(UserError, match=r"cannot read .*none\.txt"):
        list(document_lines([tmp_path / "none.txt"]))


def test_documents_are_files_here_or_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "fetch_file", lambda source: tmp_path / source.rpartition("/")[2])
    assert documents.document_file(tmp_path / "text.txt") == tmp_path / "text.txt"
    assert documents.document_file("hf://datasets/someone/texts@main/text.txt") == tmp_path / "text.txt"
    with pytest.raises(UserError, match="scenes has no documents"):
        documents.document_file("scenes")
