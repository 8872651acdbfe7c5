import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.spatial.distance import pdist

from simcse_kit.evaluate import geometry as module
from simcse_kit.evaluate.geometry import alignment, anisotropy, effective_rank, geometry, uniformity

FIGURES = ("alignment", "uniformity", "anisotropy", "effective_rank")


def figures(measured):
    return [getattr(measured, name) for name in FIGURES]


def pairs(n=40, dimensions=6, seed=0):
    """Vectors of any length and a common direction, and gold scores."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(2, n, dimensions)) + 0.7) * rng.uniform(0.1, 9, size=(2, n, 1))
    return vectors[0].astype(np.float32), vectors[1].astype(np.float32), rng.uniform(0, 5, n).round(1)


def unit(rows):
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("entries", [1, 500, 2**21])
def test_figures_equal_double_loops(monkeypatch, entries):
    monkeypatch.setattr(module, "_KERNEL_ENTRIES", entries)
    vectors1, vectors2, gold = pairs()
    measured = geometry(vectors1, vectors2, gold)

    sentences = [[float(x) for x in row] for row in (*vectors1, *vectors2)]
    sentences = [[x / math.hypot(*row) for x in row] for row in sentences]
    squares = [
        [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for j, y in enumerate(sentences) if i != j]
        for i, x in enumerate(sentences)
    ]
    different = [square for row in squares for square in row]
    positives = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        for x, y, score in zip(sentences[:40], sentences[40:], gold, strict=True)
        if score > 4
    ]
    assert measured.alignment == pytest.approx(sum(positives) / len(positives), abs=1e-9)
    mean_potential = sum(math.exp(-2 * square) for square in different) / len(different)
    assert measured.uniformity == pytest.approx(math.log(mean_potential), abs=1e-9)
    assert measured.anisotropy == pytest.approx(sum(1 - square / 2 for square in different) / len(different), abs=1e-9)
    singular = np.linalg.svd(np.array(sentences) - np.mean(sentences, axis=0), compute_uv=False)
    shares = [value / sum(singular) for value in singular]
    assert measured.effective_rank == pytest.approx(math.prod(share**-share for share in shares), abs=1e-9)
    assert (measured.n_positives, measured.n_sentences) == (len(positives), 80)


def test_figures_equal_scipy_over_several_blocks(monkeypatch):
    monkeypatch.setattr(module, "_KERNEL_ENTRIES", 300 * 128)
    rows = unit(np.random.default_rng(1).normal(0.3, 1, size=(300, 24)))
    distances = pdist(rows)
    assert uniformity(rows) == pytest.approx(math.log(np.exp(-2 * distances**2).mean()), abs=1e-9)
    assert anisotropy(rows) == pytest.approx(1 - pdist(rows, "cosine").mean(), abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_orthonormal_vectors(n):
    """All squared distances are 2; centred, they are a simplex, which has n - 1 equal singular values."""
    assert uniformity(np.eye(n)) == pytest.approx(-4)
    assert anisotropy(np.eye(n)) == pytest.approx(0)
    assert effective_rank(np.eye(n)) == pytest.approx(n - 1)


def test_antipodal_points():
    points = np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    assert uniformity(points) == pytest.approx(math.log((2 + 4 * math.exp(-8)) / 6))
    assert anisotropy(points) == pytest.approx(-1 / 3)
    assert effective_rank(points) == pytest.approx(1)
    assert alignment(points[::2], points[1::2]) == pytest.approx(4)


def test_points_uniform_on_the_circle_reach_the_integral():
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mean = integrate.quad(lambda angle: math.exp(-4 * (1 - math.cos(angle))), 0, 2 * math.pi)[0] / (2 * math.pi)
    # The mean over the circle, but for the pairs of a point with itself, which do not count.
    assert uniformity(circle) == pytest.approx(math.log((1000 * mean - 1) / 999), abs=1e-9)
    assert anisotropy(circle) == pytest.approx(-1 / 999)
    assert effective_rank(circle) == pytest.approx(2)


@pytest.mark.parametrize("rank", [1, 5, 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_effective_rank_counts_the_dimensions_in_equal_use(rank, dtype):
    """Plus and minus each of `rank` random orthonormal directions: their mean is 0, their singular values are equal."""
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(64, 64)))[0][:rank]
    vectors1, vectors2 = (3 * directions).astype(dtype), (-directions).astype(dtype)
    assert geometry(vectors1, vectors2, np.zeros(rank)).effective_rank == pytest.approx(rank, abs=1e-9)


def test_effective_rank_lies_between_where_dimensions_are_in_unequal_use():
    rows = np.concatenate([np.eye(3), -np.eye(3)]).repeat([16, 4, 1, 16, 4, 1], axis=0)
    shares = np.array([4, 2, 1]) / 7  # singular values: the roots of 32, 8 and 2
    assert effective_rank(rows) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_figures_are_of_directions_whatever_the_axes(seed, scale):
    vectors1, vectors2, gold = pairs(n=15, dimensions=4, seed=seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    gold[0] = 5
    turned = geometry(scale * vectors1 @ rotation, vectors2 @ rotation, gold)
    assert figures(turned) == pytest.approx(figures(geometry(vectors1, vectors2, gold)), rel=1e-4, abs=1e-4)
    swapped = geometry(vectors2, vectors1, gold)
    assert figures(swapped) == pytest.approx(figures(geometry(vectors1, vectors2, gold)), abs=1e-9)


def test_alignment_is_of_pairs_above_four():
    vectors1 = np.array([[1, 0], [1, 0], [1, 0], [0, 2]], np.float32)
    vectors2 = np.array([[0, 1], [-1, 0], [1, 1], [0, 1]], np.float32)
    measured = geometry(vectors1, vectors2, np.array([4.2, 4.0, 1.0, 5.0]))
    assert (measured.alignment, measured.n_positives) == (pytest.approx((2 + 0) / 2), 2)


def test_a_sentence_that_recurs_counts_once():
    vectors1, vectors2, gold = pairs()
    vectors1[7] = vectors1[3]
    vectors2[5] = vectors1[3]
    once = np.delete(np.arange(80), [7, 45])
    rows = unit(np.concatenate([vectors1, vectors2])[once])
    measured, naive = geometry(vectors1, vectors2, gold, distinct=once), geometry(vectors1, vectors2, gold)
    assert measured.uniformity == pytest.approx(math.log(np.exp(-2 * pdist(rows) ** 2).mean()), abs=1e-6)
    assert measured.n_sentences == 78
    assert (measured.alignment, measured.buckets) == (naive.alignment, naive.buckets)
    for name in FIGURES[1:]:
        assert abs(getattr(measured, name) - getattr(naive, name)) > 1e-4


def test_cosines_by_gold_score():
    vectors1 = np.array([[1, 0]] * 7, np.float32)
    vectors2 = np.array([[1, 0], [-1, 0], [0, 1], [3, 4], [3, 4], [0, 0], [1, 0]], np.float32)
    measured = geometry(vectors1, vectors2, np.array([0, 0.9, 1, 2.5, 2, 4, 5]))
    assert np.allclose(measured.cosine_edges, np.arange(-10, 11) / 10, rtol=0, atol=0)
    found = [
        (b.low, b.high, b.n, b.mean and round(b.mean, 9), np.flatnonzero(b.counts).tolist()) for b in measured.buckets
    ]
    assert found == [
        (0, 1, 2, 0, [0, 19]),
        (1, 2, 1, 0, [10]),
        (2, 3, 2, 0.6, [16]),
        (3, 4, 0, None, []),
        (4, 5, 2, 0.5, [10, 19]),
    ]
    assert measured.buckets[2].counts[16] == 2


def test_every_pair_is_in_one_bucket_and_one_bin():
    vectors1, vectors2, gold = pairs(n=500)
    buckets = geometry(vectors1, vectors2, gold).buckets
    assert sum(bucket.n for bucket in buckets) == sum(sum(bucket.counts) for bucket in buckets) == 500
    rows = unit(vectors1), unit(vectors2)
    for bucket in buckets:
        inside = (gold >= bucket.low) & (gold < bucket.high + (bucket.high == 5))
        assert bucket.mean == pytest.approx((rows[0] * rows[1]).sum(axis=1)[inside].mean(), abs=1e-6)


def test_a_constant_encoder_has_collapsed():
    vectors = np.outer(np.arange(1, 31), [0.3, 0.7, -0.1, 2.1]).astype(np.float32)  # parallel but for rounding
    measured = geometry(vectors, vectors[::-1], np.full(30, 4.5))
    assert figures(measured)[:3] == pytest.approx([0, 0, 1], abs=1e-6)
    assert measured.effective_rank is None
    assert measured.reasons == {"effective_rank": "all vectors have the same direction"}


def test_zero_vectors_and_nan_have_no_direction():
    vectors1 = np.array([[0, 0], [3, 4]], np.float32)
    vectors2 = np.array([[2, 0], [np.nan, 0]], np.float32)
    measured = geometry(vectors1, vectors2, np.array([5, 5]))
    assert measured.alignment == 1
    # Two unit vectors of cosine 0.6, and two zeros.
    potentials = [math.exp(-2 * square) for square in (1, 1, 1, 1, 0.8, 0)]
    assert measured.uniformity == pytest.approx(math.log(sum(potentials) / 6))
    assert measured.anisotropy == pytest.approx(0.6 / 6)


def test_undefined_figures_have_reasons():
    vectors = np.ones((1, 3), np.float32)
    measured = geometry(vectors, vectors, np.array([4.0]), distinct=np.array([0]))
    assert figures(measured) == [None] * 4
    assert measured.reasons == {
        "alignment": "no pair has a gold score above 4",
        "uniformity": "there are fewer than two sentences",
        "anisotropy": "there are fewer than two sentences",
        "effective_rank": "all vectors have the same direction",
    }


def test_json_holds_every_figure():
    measured = geometry(*pairs())
    read = json.loads(json.dumps(measured.as_json(), allow_nan=False))
    assert [read[name] for name in FIGURES] == figures(measured)
    assert read["reasons"] == {}
    assert read["buckets"][4]["counts"] == list(measured.buckets[4].counts)
    assert len(read["cosine_edges"]) == len(read["buckets"][0]["counts"]) + 1 == 21


def test_memory_is_bounded():
    rows = unit(np.random.default_rng(3).normal(size=(5000, 8)))
    tracemalloc.start()
    uniformity(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, "all pairs at once would be 200 MB"
