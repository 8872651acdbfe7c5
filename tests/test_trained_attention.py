"""Attention in training against softmax(q k' scaling) v of each row by PyTorch's operations, and its gradients."""

import pytest
import torch

from simcse_kit.dropout import dropout
from simcse_kit.packing import Packing
from simcse_kit.trained_attention import attend_by_length

LENGTHS = [5, 40, 16, 5, 1, 15, 17]
HEADS, WIDTH, SCALING = 3, 8, 0.7


def packing():
    return Packing((torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long())


def made_up(dtype=torch.float64):
    """Query, key and value of a packed batch, as attention gets them: views of one linear layer's states."""
    torch.manual_seed(0)
    joined = torch.randn(1, sum(LENGTHS), 3, HEADS, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    return joined, joined.unbind(2)


def drawn(rate):
    """What dropout multiplies the probabilities of each row by, [H, L, L] each, in the order of the packed row."""
    groups = [[40], [17], [16, 15], [5, 5, 1]]  # of eight lengths each, padded to the longest
    sizes = [len(lengths) * HEADS * lengths[0] ** 2 for lengths in groups]
    parts = dropout(torch.ones(sum(sizes), dtype=torch.float64), rate).split(sizes)
    return [
        row[:, :length, :length]
        for lengths, part in zip(groups, parts, strict=True)
        for length, row in zip(lengths, part.view(-1, HEADS, lengths[0], lengths[0]), strict=True)
    ]


def row_by_row(query, key, value, factors):
    """In the order of the packed row, the longest first."""
    lengths = sorted(LENGTHS, reverse=True)
    parts = []
    for factor, *row in zip(factors, *(states[0].split(lengths) for states in (query, key, value)), strict=True):
        q, k, v = (states.transpose(0, 1) for states in row)
        parts.append(((SCALING * q @ k.transpose(1, 2)).softmax(dim=-1) * factor) @ v)
    return torch.cat(parts, dim=1).transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_values_and_gradients_are_those_of_each_row_alone(rate):
    joined, states = made_up()
    torch.manual_seed(3)
    found = attend_by_length(*states, packing(), dropout=rate, scaling=SCALING)
    torch.manual_seed(3)
    expected = row_by_row(*states, drawn(rate))
    assert found.shape == (1, sum(LENGTHS), HEADS, WIDTH) and (found - expected).abs().max() < 1e-12
    weights = torch.randn_like(expected)
    (own,), (other,) = (torch.autograd.grad((each * weights).sum(), joined) for each in (found, expected))
    assert (own - other).abs().max() < 1e-12


def test_what_is_dropped_are_probabilities_each_with_a_draw_of_its_own_and_the_others_are_scaled_up():
    # All scores equal, and the values a unit matrix: what is gathered are the probabilities.
    length, rate, rows = 16, 0.3, 400
    alike = Packing(torch.ones(rows, length, dtype=torch.int64))
    zeros = torch.zeros(1, rows * length, 2, length)
    units = torch.eye(length).repeat(rows, 1).unsqueeze(1).expand(-1, 2, -1).unsqueeze(0)
    torch.manual_seed(0)
    found = attend_by_length(zeros, zeros, units, alike, dropout=rate, scaling=1.0)
    torch.manual_seed(0)
    drawn = dropout(torch.full((rows, 2, length, length), 1 / length), rate)
    assert torch.allclose(found.view(rows, length, 2, length), drawn.transpose(1, 2), atol=1e-7)
    kept = (found != 0).double()
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / kept.numel()) ** 0.5


@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["usual", "beyond-exp"])
def test_in_half_precision_under_autocast_errors_are_those_of_rounding_the_result(scale):
    _, halves = made_up(torch.bfloat16)
    halves = [(scale * each).detach().requires_grad_() for each in halves]
    doubles = [each.detach().double().requires_grad_() for each in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend_by_length(*halves, packing(), dropout=0.0, scaling=SCALING)
    expected = row_by_row(*doubles, drawn(0.0))
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-5 * scale)
    weights = torch.randn_like(expected).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = torch.autograd.grad((found * weights).sum(), halves)
    for one, other in zip(own, torch.autograd.grad((expected * weights).sum(), doubles), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() < 2**-8 * other.norm()


def test_nothing_is_remembered_where_nothing_is_asked_for():
    _, states = made_up()
    with torch.no_grad():
        found = attend_by_length(*states, packing(), dropout=0.1, scaling=SCALING)
    assert found.grad_fn is None
