"""Packed batches against loops over their rows."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse_kit.batching import pad
from simcse_kit.packing import Packing, packed_batches

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=30)


def rows_of(lengths):
    """Rows of numbers that occur once."""
    return [[100 * row + token for token in range(length)] for row, length in enumerate(lengths)]


def by_hand(rows):
    """The packed rows, a row without tokens as one of padding (-1): longest first, else in their order."""
    return [row or [-1] for row in sorted(rows, key=lambda row: -max(1, len(row)))]


@given(LENGTHS)
def test_rows_lie_end_to_end_the_longest_first(lengths):
    rows = rows_of(lengths)
    ids, mask = pad(rows, pad_id=-1)
    packing = Packing(mask)
    expected = by_hand(rows)
    assert packing.pack(ids).tolist() == [[token for row in expected for token in row]]
    assert [length for n, length in packing.groups for _ in range(n)] == [len(row) for row in expected]
    assert len({length for _, length in packing.groups}) == len(packing.groups)


@given(LENGTHS)
def test_groups_hold_whole_rows_and_vectors_go_back_into_order(lengths):
    rows = rows_of(lengths)
    ids, mask = pad(rows, pad_id=-1)
    packing = Packing(mask)
    states = torch.stack([ids.double(), -ids.double()], dim=-1)  # [B, T, 2]
    sums, seen = [], []
    for group, kept, own in packing.by_length(packing.pack(states), packing.pack(mask), packing.pack(ids)):
        seen += own.tolist()
        sums.append((group * kept.unsqueeze(-1)).sum(dim=1))
    assert seen == by_hand(rows)
    expected = [[sum(row), -sum(row)] for row in rows]
    assert packing.in_order(torch.cat(sums)).tolist() == expected


@given(LENGTHS)
def test_padding_undoes_packing(lengths):
    ids, mask = pad(rows_of(lengths), pad_id=7)
    states = torch.stack([ids, ids + 1], dim=-1) * mask.unsqueeze(-1)
    packing = Packing(mask)
    assert torch.equal(packing.pad(packing.pack(states)), states)


def test_groups_are_views_whose_gradients_arrive():
    mask = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]])
    packing = Packing(mask)
    packed = torch.randn(1, 6, 3, requires_grad=True)
    (pairs,), (singles,) = packing.by_length(packed)
    assert pairs.data_ptr() == packed.data_ptr()
    (3 * pairs.sum() + 5 * singles.sum()).backward()
    assert packed.grad[0, :, 0].tolist() == [3, 3, 3, 3, 5, 5]


@given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 300))
def test_batches_hold_every_row_once_and_as_many_as_fit(lengths, budget):
    batches = list(packed_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    tokens = [[max(1, lengths[row]) for row in batch] for batch in batches]
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in tokens)
    for batch, after in pairwise(tokens):
        assert sum(batch) + after[0] > budget or (len(batch) + 1) * batch[0] > 4 * budget
    # Sorted, so that the rows of one length share a batch, or two.
    assert [length for batch in tokens for length in batch] == sorted((max(1, n) for n in lengths), reverse=True)


def test_the_budget_counts_no_padding():
    assert list(packed_batches([2, 9, 2, 2, 3], token_budget=7)) == [[1], [4, 0, 2], [3]]


@pytest.mark.parametrize("lengths", [[], [0]])
def test_hardly_any_rows(lengths):
    assert list(packed_batches(lengths, 4)) == [[row] for row in range(len(lengths))]


@given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 300))
def test_padding_a_batch_never_takes_many_times_its_budget(lengths, budget):
    for batch in packed_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 4 * budget


def test_one_long_row_does_not_stand_beside_a_thousand_short_ones():
    first, *others = packed_batches([500, *[1] * 1_500], token_budget=1_000)
    assert len(first) == 8 and sum(map(len, others)) == 1_493
