import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_losses import draw

from simcse_kit.objectives import angle, cosent

both = pytest.mark.parametrize("objective", [cosent, angle])


def pairs_at(*degrees):
    """Pairs of vectors in a plane at these angles."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    v = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(v), v


@both
def test_without_an_ordered_pair_there_is_nothing_to_learn(objective):
    views = [view.requires_grad_() for view in draw(2, 5)]
    loss = objective(*views, torch.full((5,), 2.5))
    loss.backward()
    assert loss.item() == 0
    assert all((view.grad == 0).all() for view in views)


@given(high=st.floats(0, 180), low=st.floats(0, 180), scale=st.floats(0.1, 50))
def test_two_pairs_cost_the_softplus_of_the_scaled_difference(high, low, scale):
    u, v = pairs_at(high, low)
    difference = math.cos(math.radians(low)) - math.cos(math.radians(high))
    loss = cosent(u, v, torch.tensor([4.0, 1.0]), scale=scale)
    assert loss.item() == pytest.approx(math.log1p(math.exp(scale * difference)), abs=1e-9)

    # With D = 2 there is one complex dimension: the quotient's angle is that between the vectors.
    turned = [abs(math.cos(math.radians(each)) - math.sin(math.radians(each))) for each in (high, low)]
    loss = angle(u, v, torch.tensor([4.0, 1.0]), scale=scale)
    assert loss.item() == pytest.approx(math.log1p(math.exp(scale * (turned[1] - turned[0]))), abs=1e-9)


@both
def test_ties_demand_nothing(objective):
    u, v = draw(2, 4)
    split = [objective(u[[0, i]], v[[0, i]], torch.tensor([5.0, 1.0])).exp() - 1 for i in (1, 2, 3)]
    tied = objective(u, v, torch.tensor([5.0, 1.0, 1.0, 1.0]))
    assert tied.item() == pytest.approx(math.log(1 + sum(split)), abs=1e-9)


@both
def test_large_differences_do_not_overflow(objective):
    u, v = pairs_at(90, 0) if objective is cosent else pairs_at(45, 0)
    u, v = u.float(), v.float()
    loss = objective(u, v, torch.tensor([5.0, 0.0]), scale=1e6)
    assert loss.item() == pytest.approx(1e6, rel=1e-5)
    assert objective(u, v, torch.tensor([0.0, 5.0]), scale=1e6).item() == 0


def test_where_the_cosine_is_flat_the_angle_still_has_a_gradient():
    """The reason for the angle objective: at equal vectors of a pair the cosine cannot be raised or lowered."""
    grads = {}
    for objective in (cosent, angle):
        u, v = (view.clone().requires_grad_() for view in pairs_at(0, 0))
        objective(u, v, torch.tensor([4.0, 1.0])).backward()
        grads[objective] = v.grad.norm().item()
    assert grads[cosent] == pytest.approx(0, abs=1e-9) and grads[angle] > 1
