"""Dropout: its share, its scale, its draws, and the gradients through it."""

import pytest
import torch

from simcse_kit.dropout import Draws, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_values_are_dropped_at_the_rate_and_the_others_keep_the_mean(rate, dtype):
    torch.manual_seed(0)
    found = dropout(torch.ones(1_001, 997, dtype=dtype), rate)
    assert (found.dtype, found.shape) == (dtype, (1_001, 997))
    kept = found != 0
    spread = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * spread
    # The scale is that of the share as drawn, so that nothing is biased; no other value comes out.
    drawn = 1 - round(rate * 2**16) / 2**16
    assert abs(drawn - (1 - rate)) < 2**-16
    assert torch.equal(found[kept].unique(), torch.tensor([1 / drawn], dtype=dtype))


def test_every_value_has_a_draw_of_its_own():
    torch.manual_seed(0)
    rate, kept = 0.3, dropout(torch.ones(400_000), 0.3) != 0
    # Four values share a draw of 64 bits, and two calls share nothing.
    again = dropout(torch.ones(400_000), rate) != 0
    for other in (again, *(kept.roll(by) for by in (1, 2, 3, 4, 5, 8))):
        assert abs((kept != other).double().mean() - 2 * rate * (1 - rate)) < 0.004


def test_the_seed_decides_whatever_the_number_of_threads():
    threads, states, found = torch.get_num_threads(), torch.ones(300, 500), []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(5)
        found.append(dropout(states, 0.1))
    torch.set_num_threads(threads)
    torch.manual_seed(6)
    assert torch.equal(*found) and not torch.equal(found[0], dropout(states, 0.1))


def test_gradients_pass_where_values_do():
    states = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)

    def seeded(states):
        torch.manual_seed(1)
        return dropout(states, 0.4)

    assert torch.autograd.gradcheck(seeded, states)
    found = seeded(states)
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert torch.equal(gradient != 0, found != 0)


@pytest.mark.parametrize(("rate", "kept"), [(0.0, True), (1.0, False), (1e-7, True)])
def test_rates_at_the_ends(rate, kept):
    states = torch.randn(100)
    assert torch.allclose(dropout(states, rate), states * kept)
    assert torch.allclose(Draws.of(100, rate).applied(states), states * kept)
    assert dropout(states[:0], 0.1).shape == (0,)
