import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from simcse_kit.evaluate.bootstrap import correlation_interval, paired_difference, resampled_correlation

METRICS = ("spearman", "pearson")
PROTOCOLS = [(metric, aggregation) for metric in METRICS for aggregation in ("all", "mean", "wmean")]


def correlation(x, y, metric):
    """Several times as quick as scipy's functions, which compute a p-value too."""
    return np.corrcoef(*((stats.rankdata(x), stats.rankdata(y)) if metric == "spearman" else (x, y)))[0, 1]


def figure(similarities, gold, metric, aggregation):
    if aggregation == "all":
        return 100 * correlation(np.concatenate(similarities), np.concatenate(gold), metric)
    values = [100 * correlation(x, y, metric) for x, y in zip(similarities, gold, strict=True)]
    return np.average(values, weights=[len(y) for y in gold] if aggregation == "wmean" else None)


def normal_pairs(rng, n, rho):
    x, noise = rng.normal(size=(2, n))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.fixture(scope="module")
def task():
    """Two models' similarities and gold scores of three subsets, unlike in size, level and difficulty, with ties."""
    rng = np.random.default_rng(3)
    first, second, gold = [], [], []
    for n, noise, level in ((20, 0.2, 0.3), (60, 0.5, 0.5), (250, 1.0, 0.0)):
        true = rng.uniform(0, 5, n)
        shared = true / 5 + level + noise * rng.normal(size=n)
        first.append((shared + 0.1 * rng.normal(size=n)).round(2))
        second.append((shared + 0.3 * rng.normal(size=n)).round(2))
        gold.append((true * 5).round() / 5)
    return first, second, gold


FREEDOM = 330 - 3
NARROW = math.sqrt(330 / FREEDOM)


@pytest.fixture(scope="module")
def redrawn(task):
    """Figures of both models in 600 resamples, drawn and scored one by one: {protocol: [2, 600]}."""
    rng = np.random.default_rng(4)
    figures = {protocol: [] for protocol in PROTOCOLS}
    for _ in range(600):
        rows = [rng.choice(len(scores), len(scores)) for scores in task[2]]
        a, b, g = ([values[row] for values, row in zip(side, rows, strict=True)] for side in task)
        for protocol in PROTOCOLS:
            figures[protocol].append([figure(a, g, *protocol), figure(b, g, *protocol)])
    return {protocol: np.transpose(values) for protocol, values in figures.items()}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_counts_stand_for_explicit_resamples(metric):
    scipy_correlation = stats.spearmanr if metric == "spearman" else stats.pearsonr
    rng = np.random.default_rng(0)
    for n, steps in ((3, 3), (6, 2), (12, 3), (40, 1000), (200, 5)):
        x = rng.integers(0, steps, n) / 7 + 100
        y = rng.normal(size=n).round(1)
        counts = rng.multinomial(n, np.ones(n) / n, size=100).T.astype(float)
        rows = [np.repeat(np.arange(n), column.astype(int)) for column in counts.T]
        explicit = np.array([scipy_correlation(x[row], y[row])[0] for row in rows])
        found = resampled_correlation(counts, x, y, metric)
        assert np.array_equal(np.isfinite(found), np.isfinite(explicit))
        np.testing.assert_allclose(found[np.isfinite(found)], explicit[np.isfinite(explicit)], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("metric", "aggregation"), PROTOCOLS)
def test_interval_agrees_with_resamples_drawn_one_by_one(task, redrawn, metric, aggregation):
    similarities, _, gold = task
    low, high = correlation_interval(
        similarities, gold, metric=metric, aggregation=aggregation, level=0.9, resamples=4000
    )
    r = figure(similarities, gold, metric, aggregation) / 100
    margin = NARROW * stats.t.ppf(0.95, FREEDOM) * np.arctanh(redrawn[metric, aggregation][0] / 100).std()
    assert math.atanh(low / 100) + math.atanh(high / 100) == pytest.approx(2 * math.atanh(r), abs=1e-9)
    assert math.atanh(high / 100) - math.atanh(r) == pytest.approx(margin, rel=0.08)


@pytest.mark.parametrize(("metric", "aggregation"), PROTOCOLS)
def test_difference_agrees_with_resamples_drawn_one_by_one(task, redrawn, metric, aggregation):
    difference = paired_difference(*task, metric=metric, aggregation=aggregation, resamples=4000)
    first, second, gold = task
    value = figure(first, gold, metric, aggregation) - figure(second, gold, metric, aggregation)
    resampled = redrawn[metric, aggregation]
    error = NARROW * (resampled[0] - resampled[1]).std()
    assert error < 0.7 * math.hypot(*resampled.std(axis=1)), "unpaired resamples would give this"
    assert difference.value == pytest.approx(value, abs=1e-9)
    assert difference.ci95 == pytest.approx((value - 1.967 * error, value + 1.967 * error), abs=0.16 * error)
    assert stats.t.isf(difference.p_value / 2, FREEDOM) == pytest.approx(abs(value) / error, rel=0.08)


@pytest.mark.parametrize(("metric", "n", "rho"), [("spearman", 100, 0.95), ("pearson", 30, 0.8), ("spearman", 50, 0.3)])
def test_95_percent_intervals_contain_the_truth_in_93_to_97_percent_of_1000_trials(metric, n, rho):
    rng = np.random.default_rng(5)
    truth = 100 * (rho if metric == "pearson" else 6 / math.pi * math.asin(rho / 2))
    missed = [0, 0]
    for trial in range(1000):
        x, y = normal_pairs(rng, n, rho)
        low, high = correlation_interval([x], [y], metric=metric, aggregation="all", resamples=200, seed=trial)
        missed[0] += truth < low
        missed[1] += truth > high
    assert 30 <= sum(missed) <= 70
    assert max(missed) <= 45, "nearly all misses are on one side"


def test_intervals_of_all_cover_where_subsets_differ_in_level():
    """Subsets of fixed size whose means grow together: the mixture's Pearson correlation is known."""
    rng = np.random.default_rng(6)
    sizes, levels, rho = np.array([60, 40, 20]), np.array([0.0, 1.0, 3.0]), 0.3
    between = np.cov(levels, fweights=sizes, ddof=0)
    truth = 100 * (rho + between) / (1 + between)
    missed = 0
    for trial in range(1000):
        drawn = [normal_pairs(rng, n, rho) for n in sizes]
        x, y = ([pair[side] + level for pair, level in zip(drawn, levels, strict=True)] for side in (0, 1))
        low, high = correlation_interval(x, y, metric="pearson", aggregation="all", resamples=200, seed=trial)
        missed += not low <= truth <= high
    assert 30 <= missed <= 70


@pytest.mark.parametrize("metric", METRICS)
def test_equally_good_models_differ_significantly_in_5_percent_of_1000_trials(metric):
    rng = np.random.default_rng(7)
    significant = 0
    for trial in range(1000):
        gold, *noise = rng.normal(size=(3, 120))
        first, second = (gold + each for each in noise)
        found = paired_difference(
            [first], [second], [gold], metric=metric, aggregation="all", resamples=200, seed=trial
        )
        assert (found.p_value < 0.05) == (not found.ci95[0] <= 0 <= found.ci95[1])
        significant += found.p_value < 0.05
    assert 30 <= significant <= 70


def test_the_difference_changes_sign_with_the_order(task):
    first, second, gold = task
    protocol = {"metric": "spearman", "aggregation": "wmean"}
    forth, back = paired_difference(first, second, gold, **protocol), paired_difference(second, first, gold, **protocol)
    assert (back.value, back.ci95, back.p_value) == (-forth.value, (-forth.ci95[1], -forth.ci95[0]), forth.p_value)


@pytest.mark.parametrize(("metric", "same"), [("spearman", np.exp), ("pearson", lambda x: 3 * x - 7)])
def test_models_of_equal_order_do_not_differ(task, metric, same):
    first, _, gold = task
    for other in (first, [same(values) for values in first]):
        difference = paired_difference(first, other, gold, metric=metric, aggregation="mean")
        assert (difference.value, *difference.ci95) == pytest.approx((0, 0, 0), abs=1e-9)
        assert difference.p_value == pytest.approx(1, abs=0.01)


def test_the_best_and_the_worst_model_differ_for_certain():
    gold = np.arange(20.0)
    difference = paired_difference([gold], [-gold], [gold], metric="pearson", aggregation="all")
    assert difference.value == pytest.approx(200)
    assert difference.p_value < 1e-100


def test_the_seed_decides(task):
    protocol = {"metric": "spearman", "aggregation": "all"}
    bounds = [correlation_interval(task[0], task[2], **protocol, seed=seed) for seed in (1, 1, 2)]
    assert bounds[0] == bounds[1] != bounds[2]
    assert bounds[0] == pytest.approx(bounds[2], abs=1)


@pytest.mark.parametrize("metric", METRICS)
def test_bounds_of_few_pairs_stay_within_the_scale(metric):
    rng = np.random.default_rng(8)
    for n in range(3, 12):
        for rho in (-0.99, 0, 0.99):
            bounds = correlation_interval(
                *([side] for side in normal_pairs(rng, n, rho)), metric=metric, aggregation="all"
            )
            assert bounds is None or -100 <= bounds[0] < bounds[1] <= 100


RISING = np.arange(6.0)
MIXED = np.array([1.0, 0, 3, 2, 5, 4])
FLAT = np.full(6, 0.1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("similarities", "gold", "aggregation"),
    [
        ([FLAT], [RISING], "all"),
        ([RISING], [FLAT], "all"),
        ([MIXED, RISING[:1]], [RISING, RISING[:1]], "mean"),
        ([MIXED, RISING], [RISING, FLAT], "wmean"),
        ([RISING[:2]] * 3, [RISING[:2]] * 3, "mean"),
        ([RISING[:1], RISING[1:2]], [RISING[:1], RISING[2:3]], "all"),
    ],
)
def test_an_undefined_correlation_has_neither_interval_nor_difference(metric, similarities, gold, aggregation):
    assert correlation_interval(similarities, gold, metric=metric, aggregation=aggregation) is None
    assert paired_difference(similarities, similarities, gold, metric=metric, aggregation=aggregation) is None


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_correlation_has_no_interval(metric):
    for x in (RISING, -3 * RISING):
        assert correlation_interval([x], [RISING], metric=metric, aggregation="all") is None


def test_an_undefined_subset_leaves_the_concatenation_its_interval():
    low, high = correlation_interval([MIXED, RISING], [RISING, FLAT], metric="spearman", aggregation="all")
    assert low < high


def test_memory_does_not_grow_with_the_resamples():
    x, y = normal_pairs(np.random.default_rng(9), 5000, 0.5)
    tracemalloc.start()
    correlation_interval([x], [y], metric="spearman", aggregation="all", resamples=1600)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6, "one array of all counts would be 64 MB"
