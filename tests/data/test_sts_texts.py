"""ConSERT's training text, against the file that others made of the same sets."""

import gzip
from collections import Counter

import pytest

from simcse_kit.data.readers import read_columns
from simcse_kit.data.sts_texts import sts_texts
from simcse_kit.errors import UserError


@pytest.mark.reference
def test_the_texts_are_those_of_consert(data_dir):
    found = Counter(map(str.strip, sts_texts([data_dir / "sts"])))
    with gzip.open(data_dir / "text" / "sts_unlabeled_consert.txt.gz", "rt", encoding="utf-8", newline="\n") as file:
        expected = Counter(line.strip() for line in file)
    assert found.total() == 89_192
    assert found == expected
    assert Counter(map(str.strip, read_columns("sts_texts", ["text"])["text"])) == found


def test_it_has_one_column(data_dir):
    with pytest.raises(UserError, match="sts_texts has one column, its sentences, not 2"):
        read_columns("sts_texts", ["a", "b"])
