import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_kit.objectives import OBJECTIVES, info_nce

ALPHA = math.log(2)


def draw(views, rows, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=dtype) for _ in range(views)]


def cosine(u, v):
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def naive_info_nce(anchor, positive, negative=None, temperature=0.05, hard_negative_weight=0.0):
    """Equations 1 and 5 of the SimCSE paper, number by number; alpha stands where equation 8 has it."""
    total = 0.0
    for i, query in enumerate(anchor):
        own, others = math.exp(cosine(query, positive[i]) / temperature), 0.0
        for j in range(len(anchor)):
            others += math.exp(cosine(query, positive[j]) / temperature)
            if negative is not None:
                alpha = math.exp(hard_negative_weight) if i == j else 1.0
                others += alpha * math.exp(cosine(query, negative[j]) / temperature)
        total -= math.log(own / others)
    return total / len(anchor)


NAIVE = {"info_nce": naive_info_nce}
CASES = {
    "info_nce": [
        (2, {}),
        (2, {"temperature": 0.5}),
        (3, {}),
        (3, {"hard_negative_weight": ALPHA}),
        (3, {"temperature": 0.2, "hard_negative_weight": -ALPHA}),
    ]
}


@pytest.mark.parametrize(
    ("name", "views", "options"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_every_objective_equals_its_formula_written_as_loops(name, views, options, rows):
    vectors = draw(views, rows)
    terms = OBJECTIVES[name](**options)(vectors)
    assert list(terms) == [name] and terms[name].shape == ()
    assert terms[name].item() == pytest.approx(NAIVE[name](*(view.tolist() for view in vectors), **options), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "views", "options"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_every_objective_has_the_gradient_of_its_value(name, views, options):
    vectors = [view.requires_grad_() for view in draw(views, rows=3, width=4, seed=1)]
    assert torch.autograd.gradcheck(lambda *inputs: OBJECTIVES[name](**options)(inputs)[name], vectors)


def test_every_objective_is_covered():
    assert OBJECTIVES.keys() == NAIVE.keys() == CASES.keys()


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_equal_vectors_leave_the_logarithm_of_the_number_of_candidates(rows):
    same = torch.ones(rows, 5)
    assert info_nce(same, same).item() == pytest.approx(math.log(rows), abs=1e-6)
    assert info_nce(same, same, same).item() == pytest.approx(math.log(2 * rows), abs=1e-6)
    weighted = info_nce(same, same, same, hard_negative_weight=ALPHA).item()
    assert weighted == pytest.approx(math.log(2 * rows + 1), abs=1e-6)  # the own negative counts twice, no other


def test_a_view_far_from_all_negatives_costs_nothing_and_one_closer_to_a_negative_costs_its_distance():
    basis = torch.eye(4)
    assert info_nce(basis, basis).item() < 1e-7
    swapped = basis.roll(1, dims=0)
    assert info_nce(basis, swapped, temperature=0.05).item() == pytest.approx(20.0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    views=st.sampled_from([2, 3]),
    scale=st.floats(1e-3, 1e3),
    weight=st.floats(-2, 2),
)
def test_lengths_a_common_rotation_and_the_order_of_rows_do_not_matter(seed, rows, views, scale, weight):
    vectors = draw(views, rows, seed=seed)
    options = {"hard_negative_weight": weight}
    expected = pytest.approx(info_nce(*vectors, **options).item(), abs=1e-9)
    lengths = draw(1, rows, width=1, seed=seed + 1)[0].abs() + 0.1
    assert info_nce(*(view * lengths * scale for view in vectors), **options).item() == expected
    rotation = torch.linalg.qr(draw(1, 6, seed=seed + 2)[0]).Q
    assert info_nce(*(view @ rotation for view in vectors), **options).item() == expected
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert info_nce(*(view[order] for view in vectors), **options).item() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_compared_in_single_precision(dtype):
    vectors = [view.to(dtype) for view in draw(3, 16, width=32, dtype=torch.float32)]
    loss = info_nce(*vectors)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(info_nce(*(view.double() for view in vectors)).item(), abs=1e-5)


def test_zero_vectors_have_a_finite_loss_and_gradient():
    vectors = [torch.zeros(3, 4, requires_grad=True) for _ in range(2)]
    loss = info_nce(*vectors)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    assert all(view.grad.isfinite().all() for view in vectors)
