import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_losses import draw

from simcse_kit.objectives import bilinear_info_nce, consistency, info_nce, nt_xent
from simcse_kit.objectives.contrastive import BilinearInfoNCE


def test_a_view_far_from_all_negatives_costs_nothing_and_one_closer_to_a_negative_costs_its_distance():
    basis = torch.eye(4)
    assert info_nce(basis, basis).item() < 1e-7
    swapped = basis.roll(1, dims=0)
    assert info_nce(basis, swapped, temperature=0.05).item() == pytest.approx(20.0, abs=1e-6)


@given(rows=st.integers(1, 8), temperature=st.floats(0.02, 10))
def test_rows_at_right_angles_count_by_the_temperature_alone(rows, temperature):
    basis = torch.eye(8, dtype=torch.float64)[:rows]
    other = math.exp(-1 / temperature)
    options = {"temperature": temperature}
    assert info_nce(basis, basis, **options).item() == pytest.approx(math.log1p((rows - 1) * other), abs=1e-12)
    assert nt_xent(basis, basis, **options).item() == pytest.approx(math.log1p((2 * rows - 2) * other), abs=1e-12)
    both = info_nce(basis, basis, basis, **options, symmetric=True).item()  # hard negatives in one direction only
    directions = math.log1p(1 + (2 * rows - 2) * other), math.log1p((rows - 1) * other)
    assert both == pytest.approx(sum(directions) / 2, abs=1e-12)


def test_views_in_which_all_rows_are_equally_alike_are_consistent_however_alike():
    assert consistency(torch.eye(5), torch.ones(5, 5)).item() == pytest.approx(0, abs=1e-6)


def test_both_directions_are_the_mean_of_each_and_only_the_first_has_hard_negatives():
    anchor, positive, negative = draw(3, 5)
    forth, back = info_nce(anchor, positive, negative), info_nce(positive, anchor)
    both = info_nce(anchor, positive, negative, symmetric=True)
    assert both.item() == pytest.approx((forth + back).item() / 2, abs=1e-12)
    assert info_nce(positive, anchor, symmetric=True).item() == pytest.approx(
        info_nce(anchor, positive, symmetric=True).item(), abs=1e-12
    )


def test_conserts_published_value_is_the_sum_of_both_views_and_twice_the_papers():
    first, second = draw(2, 6)
    blocks = {
        (a, b): torch.nn.functional.normalize(u) @ torch.nn.functional.normalize(v).T / 0.1
        for a, u in (("a", first), ("b", second))
        for b, v in (("a", first), ("b", second))
    }
    masked = 1e9 * torch.eye(6)
    target = torch.arange(6)
    published = sum(
        torch.nn.functional.cross_entropy(torch.cat([blocks[a, b], blocks[a, a] - masked], dim=1), target)
        for a, b in (("a", "b"), ("b", "a"))
    )
    assert nt_xent(first, second, reduction="sum").item() == pytest.approx(published.item(), abs=1e-12)
    assert nt_xent(first, second).item() == pytest.approx(published.item() / 2, abs=1e-12)


def test_the_bilinear_score_starts_as_a_scaled_dot_product_and_turns_with_its_matrix():
    u, v, rotation, other = draw(2, 5, width=4) + draw(2, 4, width=4, seed=1)
    start = BilinearInfoNCE(width=4).double()
    scaled = torch.nn.functional.cross_entropy(u @ v.T / 2, torch.arange(5))  # 2 = sqrt(4)
    assert start([u, v])["bilinear_info_nce"].item() == pytest.approx(scaled.item(), abs=1e-12)

    rotation, other = torch.linalg.qr(rotation).Q, torch.linalg.qr(other).Q
    matrix = draw(1, 4, width=4, seed=2)[0]
    turned = bilinear_info_nce(u @ rotation, v @ other, rotation.T @ matrix @ other)
    assert turned.item() == pytest.approx(bilinear_info_nce(u, v, matrix).item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_consistency_is_positive_and_nothing_where_the_second_view_is_the_first_one_turned(seed):
    first, second, rotation = *draw(2, 6, seed=seed), torch.linalg.qr(draw(1, 6, seed=seed + 9)[0]).Q
    assert consistency(first, second).item() > 0.01
    assert consistency(first, first @ rotation).item() == pytest.approx(0, abs=1e-9)
    assert consistency(first[:2], second[:2]).item() == 0  # there is one other row to choose, in both views
