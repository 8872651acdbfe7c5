import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from lookup import Lookup
from scipy import stats

from simcse_kit.data.senteval import data_root
from simcse_kit.data.sts import STS_TASKS, StsSubset, StsTask, load_sts_task
from simcse_kit.evaluate.sts import cosine_similarity, score_sts, score_tasks

DATA = data_root()
PROTOCOLS = [(metric, aggregation) for metric in ("spearman", "pearson") for aggregation in ("all", "mean", "wmean")]


def make_task(*subsets, name="own"):
    return StsTask(name, "test", "disk", tuple(StsSubset(n, a, b, np.array(g, float)) for n, a, b, g in subsets), "0")


@pytest.fixture
def scored():
    """Three subsets of unequal size whose gold scores tie and whose sentences recur."""
    rng = np.random.default_rng(7)
    words = [f"sentence {i}" for i in range(20)]
    encoder = Lookup({word: rng.normal(size=5) for word in words})
    subsets = [
        (name, rng.choice(words, n).tolist(), rng.choice(words, n).tolist(), rng.integers(0, 6, n).tolist())
        for name, n in (("a", 4), ("b", 15), ("c", 40))
    ]
    return encoder, make_task(*subsets)


def naive_pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def naive_ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def naive_score(encoder, task, metric, aggregation):
    def cosine(a, b):
        u, v = ([float(np.float32(x)) for x in encoder.vectors[s]] for s in (a, b))
        return sum(x * y for x, y in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)

    def correlation(pairs):
        x, y = zip(*pairs, strict=True)
        return 100 * (naive_pearson(naive_ranks(x), naive_ranks(y)) if metric == "spearman" else naive_pearson(x, y))

    subsets = [
        [(round(cosine(a, b), 9), gold) for a, b, gold in zip(s.sentences1, s.sentences2, s.scores, strict=True)]
        for s in task.subsets
    ]
    if aggregation == "all":
        return correlation([pair for pairs in subsets for pair in pairs])
    weights = [len(pairs) if aggregation == "wmean" else 1 for pairs in subsets]
    return sum(w * correlation(pairs) for w, pairs in zip(weights, subsets, strict=True)) / sum(weights)


@pytest.mark.parametrize(("metric", "aggregation"), PROTOCOLS)
def test_figures_equal_a_naive_computation(scored, metric, aggregation):
    encoder, task = scored
    score = score_sts(encoder, task, metric=metric, aggregation=aggregation)
    assert score.value == pytest.approx(naive_score(encoder, task, metric, aggregation), abs=1e-6)
    assert (score.figure.n, score.figure.reason) == (59, None)
    for subset in task.subsets:
        alone = naive_score(encoder, replace(task, subsets=(subset,)), metric, "all")
        assert score.subsets[subset.name].value == pytest.approx(alone, abs=1e-6)
        assert score.subsets[subset.name].n == len(subset.scores)


def test_the_three_aggregations_differ(scored):
    values = [score_sts(*scored, aggregation=aggregation).value for aggregation in ("all", "mean", "wmean")]
    assert min(abs(a - b) for a, b in zip(values, values[1:] + values[:1], strict=True)) > 0.1


def test_each_distinct_sentence_is_encoded_once_over_all_tasks(scored):
    encoder, task = scored
    other = make_task(("d", ["sentence 1", "sentence 2"], ["sentence 3", "sentence 1"], [1, 2]), name="other")
    scores = score_tasks(encoder, [task, other])
    (asked,) = encoder.calls
    assert len(asked) == len(set(asked)) == 20
    assert [score.value for score in scores] == [score_sts(encoder, each).value for each in (task, other)]


def test_a_zero_vector_has_cosine_zero_and_nan_counts_as_zero():
    u = np.array([[3, 4], [0, 0], [np.nan, 1], [1, 0]], np.float32)
    v = np.array([[4, 3], [1, 1], [3, 4], [-2, 0]], np.float32)
    assert cosine_similarity(u, v).tolist() == [0.96, 0, 0.8, -1]


def test_parallel_vectors_tie_whatever_their_length():
    u = np.random.default_rng(0).normal(size=(500, 33)).astype(np.float32)
    assert set(cosine_similarity(u, 3 * u)) == {1.0}


TEXTS = ["a", "b", "c"]
SPREAD = Lookup({"a": [1, 0], "b": [1, 1], "c": [0, 1]})
CONSTANT = Lookup({text: [0.3, 0.7] for text in TEXTS})
GOOD = ("good", TEXTS, ["b", "b", "a"], [1, 2, 3])
FLAT = ("flat", TEXTS, ["b", "b", "a"], [2, 2, 2])
SHORT = ("short", ["a"], ["b"], [1])


@pytest.mark.parametrize(
    ("encoder", "subsets", "aggregation", "reason"),
    [
        (CONSTANT, [GOOD], "all", "all 3 cosine similarities are equal (1)"),
        (SPREAD, [FLAT], "all", "all 3 gold scores are equal (2)"),
        (SPREAD, [SHORT], "all", "a correlation needs at least 2 pairs, here 1"),
        (SPREAD, [GOOD, FLAT], "mean", "subset flat: all 3 gold scores are equal (2)"),
        (SPREAD, [SHORT, GOOD], "wmean", "subset short: a correlation needs at least 2 pairs, here 1"),
    ],
)
def test_an_undefined_figure_is_none_with_its_reason(encoder, subsets, aggregation, reason):
    score = score_sts(encoder, make_task(*subsets), aggregation=aggregation)
    assert (score.value, score.figure.reason) == (None, reason)
    assert score.figure.n == sum(len(subset[3]) for subset in subsets)


def test_an_undefined_subset_leaves_the_concatenation_defined():
    score = score_sts(SPREAD, make_task(GOOD, FLAT), aggregation="all")
    assert score.value is not None
    assert score.subsets["flat"].value is None and score.subsets["good"].value is not None


class BagOfWords:
    """A sum of one random vector a word."""

    words = np.random.default_rng(1).normal(size=(8192, 24)).astype(np.float32)

    def encode(self, sentences):
        rows = ([zlib.crc32(word.encode()) % 8192 for word in sentence.split()] for sentence in sentences)
        return np.stack([self.words[row].sum(axis=0) for row in rows])


def read_directly(task, shift=0):
    """Pairs of each subset, read here, with gold scores misaligned by `shift` lines."""
    root = DATA / "sts"
    if task == "STSB":
        rows = [line.split("\t") for line in (root / "STS/STSBenchmark/sts-test.csv").read_text().splitlines()]
        files = [([row[5:7] for row in rows], [row[4] for row in rows])]
    elif task == "SICKR":
        rows = [line.split("\t") for line in (root / "SICK/SICK_test_annotated.txt").read_text().splitlines()[1:]]
        files = [([row[1:3] for row in rows], [row[3] for row in rows])]
    else:
        inputs = sorted((root / f"STS/{task}-en-test").glob("STS.input.*.txt"))
        files = [
            (
                [line.split("\t") for line in path.read_text().split("\n")[:-1]],
                path.with_name(path.name.replace(".input.", ".gs.")).read_text().split("\n")[:-1],
            )
            for path in inputs
        ]
    for pairs, gold in files:
        scored = [(a, b, g) for (a, b), g in zip(pairs, gold, strict=True) if g.strip()]
        scores = np.array([float(g) for *_, g in scored])
        yield [a.strip() for a, *_ in scored], [b.strip() for _, b, _ in scored], np.roll(scores, shift)


def direct_score(task, metric, aggregation, shift=0):
    correlation = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[metric]
    cosines, golds = [], []
    for left, right, gold in read_directly(task, shift):
        u, v = (BagOfWords().encode(texts).astype(float) for texts in (left, right))
        cosines.append([1 - x @ y / np.sqrt(x @ x * (y @ y)) for x, y in zip(u, v, strict=True)])
        golds.append(gold)
    if aggregation == "all":
        return -100 * correlation(np.concatenate(cosines), np.concatenate(golds))[0]
    values = [-100 * correlation(x, y)[0] for x, y in zip(cosines, golds, strict=True)]
    return np.average(values, weights=[len(gold) for gold in golds] if aggregation == "wmean" else None)


@pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")
@pytest.mark.reference
@pytest.mark.parametrize("task", STS_TASKS)
def test_figures_equal_a_direct_computation_from_the_files(task):
    loaded = load_sts_task(task, [DATA / "sts"])
    for metric, aggregation in PROTOCOLS:
        value = score_sts(BagOfWords(), loaded, metric=metric, aggregation=aggregation).value
        assert value == pytest.approx(direct_score(task, metric, aggregation), abs=0.01)
        assert abs(value - direct_score(task, metric, aggregation, shift=1)) > 1
