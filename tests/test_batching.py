import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse_kit.batching import length_sorted_batches, pad, windows
from simcse_kit.errors import UserError


@given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 300))
def test_batches_hold_every_row_once_and_keep_to_the_budget(lengths, budget):
    batches = list(length_sorted_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= budget or len(batch) == 1
    tallest = [max(lengths[row] for row in batch) for batch in batches]
    assert tallest == sorted(tallest, reverse=True)


def test_a_batch_is_as_large_as_the_budget_allows():
    assert list(length_sorted_batches([2, 9, 2, 2, 3], token_budget=6)) == [[1], [4, 0], [2, 3]]


def test_padding_stands_on_the_right_and_is_masked():
    ids, mask = pad([[5, 6, 7], [8], [9, 1]], pad_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_rows_without_tokens_are_padded_to_one_position():
    ids, mask = pad([[], []], pad_id=7)
    assert (ids.tolist(), mask.tolist(), ids.dtype) == ([[7], [7]], [[0], [0]], torch.int64)


def test_windows_pass_an_iterable_on_in_order():
    assert list(windows((letter for letter in "abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(windows([], 2)) == []


def test_windows_of_long_texts_are_shorter():
    texts = ["aaa", "b", "cccc", "dddd", "", "e", "f"]
    assert list(windows(iter(texts), 3, characters=4)) == [["aaa", "b"], ["cccc"], ["dddd"], ["", "e", "f"]]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (None, "sentence 3 is NoneType, not a string: None"),
        (float("nan"), "sentence 3 is float, not a string: nan"),
        (b"bytes", "sentence 3 is bytes, not a string: b'bytes'"),
        ("a\ud800b", "sentence 3 holds half of a surrogate pair, which is no valid text"),
    ],
)
def test_what_is_no_text_is_named_by_its_position(item, said):
    with pytest.raises(UserError) as caught:
        list(windows(["a", "b", "c", item], 2))
    assert str(caught.value) == said
