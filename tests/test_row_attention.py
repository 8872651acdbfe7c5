"""Attention within rows against softmax(q k' / sqrt(d)) v written out in float64."""

import numpy as np
import pytest
import torch

from simcse_kit import blas, row_attention
from simcse_kit.row_attention import attend_rows

ROWS, HEADS, WIDTH = 5, 3, 8


@pytest.fixture(autouse=True, params=[False, True], ids=["", "mkl"])
def with_mkl(request, monkeypatch):
    monkeypatch.setattr(blas, "mkl_is_quickest", lambda: request.param)


def written_out(query, key, value):
    query, key, value = (states.double().numpy() for states in (query, key, value))
    scores = np.einsum("nqhd,nlhd->nhql", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("nhql,nlhd->nqhd", weights / weights.sum(axis=-1, keepdims=True), value)


def made_up(length, *, queries=None, dtype=torch.float32, scale=1.0):
    """Query, key and value as they come from one linear layer: views that are not contiguous."""
    torch.manual_seed(length)
    joined = scale * torch.randn(ROWS, length, 3, HEADS, WIDTH)
    query, key, value = joined.to(dtype).unbind(2)
    return query[:, :queries], key, value


def attended(query, key, value):
    into = torch.full(query.shape, torch.nan, dtype=query.dtype)
    attend_rows(query, key, value, into=into)
    return into


@pytest.mark.parametrize("rows_at_once", [1, 2, ROWS])
@pytest.mark.parametrize("queries", [1, None], ids=["first-tokens", "all-tokens"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40, 192, 193])
def test_every_length(monkeypatch, length, queries, rows_at_once):
    states = made_up(length, queries=queries)
    scores = HEADS * (queries or length) * length * states[0].element_size()
    monkeypatch.setattr(row_attention, "_SCORES", rows_at_once * scores)
    np.testing.assert_allclose(attended(*states).numpy(), written_out(*states), atol=2e-6)


@pytest.mark.parametrize("length", [9, 30, 200])
def test_scores_far_beyond_what_exp_can_take(length):
    states = made_up(length, scale=30.0)
    found = attended(*states)
    np.testing.assert_allclose(found.numpy(), written_out(*states), atol=2e-2)


@pytest.mark.parametrize("length", [9, 30, 200])
def test_in_half_precision_errors_are_of_its_rounding(length):
    states = made_up(length, dtype=torch.bfloat16)
    exact = written_out(*states)
    error = np.linalg.norm(attended(*states).float().numpy() - exact) / np.linalg.norm(exact)
    assert 0 < error < torch.finfo(torch.bfloat16).eps
