"""What simcse-eval measures of a model, against the parts measured by themselves."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from simcse_kit.data.overlap import fingerprints, write_fingerprints
from simcse_kit.data.sts import StsSubset, StsTask
from simcse_kit.errors import UserError
from simcse_kit.evaluate.bootstrap import correlation_interval, paired_difference
from simcse_kit.evaluate.cross_encoder import PairScorer
from simcse_kit.evaluate.geometry import geometry
from simcse_kit.evaluate.measure import Plan, measure, result_file, training_of
from simcse_kit.evaluate.sts import pair_similarities, score_sts

WORDS = [f"word {i}" for i in range(30)]


class Encoder:
    """Random vectors, and how often they were asked for."""

    def __init__(self, seed, constant=False):
        table = np.random.default_rng(seed).normal(size=(len(WORDS), 6)).astype(np.float32)
        self.vectors, self.calls = dict(zip(WORDS, table * (not constant) + constant, strict=True)), 0

    def encode(self, sentences):
        self.calls += 1
        return np.stack([self.vectors[sentence] for sentence in sentences])


def entry(i, path="nowhere", training=None):
    own = {"id": f"m{i}", "path": str(path), "weights_sha256": str(i), "pooling": "mean", "head": "none"}
    return own | {"normalize": False, "dtype": "float32", "max_length": 32, "training": training}


@pytest.fixture
def tasks():
    draw = np.random.default_rng(3)

    def subset(name, n):
        return StsSubset(name, list(draw.choice(WORDS, n)), list(draw.choice(WORDS, n)), draw.integers(0, 6, n) * 1.0)

    years = StsTask("STS13", "test", "disk", (subset("FNWN", 20), subset("OnWN", 40)), "aa")
    return [years, StsTask("STSB", "test", "raw", (subset("STSB", 50),), "bb")]


@pytest.mark.parametrize("aggregation", ["all", "wmean"])
def test_figures_intervals_and_geometry_are_those_of_their_own_functions(tasks, aggregation):
    encoder = Encoder(0)
    plan = Plan(tasks, metric="pearson", aggregation=aggregation)
    measured = measure(entry(0), encoder, plan)
    assert encoder.calls == 1
    for found, task, similarities in zip(measured.results, tasks, pair_similarities(encoder, tasks), strict=True):
        score = score_sts(encoder, task, metric="pearson", aggregation=aggregation)
        gold = [subset.scores for subset in task.subsets]
        interval = correlation_interval(similarities, gold, metric="pearson", aggregation=aggregation)
        assert found["value"] == score.value and found["ci95"] == interval and found["overlap"] is None
        assert interval[0] < score.value < interval[1]
        assert found["subsets"] == {name: {"value": f.value, "n": f.n} for name, f in score.subsets.items()}
        assert found["protocol"] == {"text": task.text, "classifier": None, "data_sha256": task.data_sha256}
        assert (found["task"], found["split"], found["aggregation"]) == (task.name, "test", aggregation)
    (shape,) = measured.geometry
    (subset,) = tasks[1].subsets
    texts = [*subset.sentences1, *subset.sentences2]
    vectors = encoder.encode(sorted(set(texts)))
    naive = np.mean([
        np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
        for i, u in enumerate(vectors) for j, v in enumerate(vectors) if i != j
    ])  # fmt: skip
    assert shape["anisotropy"] == pytest.approx(naive, abs=1e-6)
    whole = geometry(encoder.encode(subset.sentences1), encoder.encode(subset.sentences2), subset.scores)
    assert (shape["model"], shape["task"], shape["text"]) == ("m0", "STSB", "raw")
    assert shape["alignment"] == whole.alignment and shape["n_sentences"] == len(set(texts))


def test_a_constant_encoder_has_null_figures_with_the_reason_and_can_be_written(tasks):
    plan = Plan(tasks)
    encoders = [Encoder(0), Encoder(0, constant=True)]
    results = result_file([measure(entry(i), encoder, plan) for i, encoder in enumerate(encoders)], plan)
    undefined = results["results"][2:]
    assert [r["value"] for r in undefined] == [None, None] and [r["ci95"] for r in undefined] == [None, None]
    assert undefined[0]["reason"] == "all 60 cosine similarities are equal (1)"
    assert results["differences"] == []
    json.dumps(results, allow_nan=False)


def test_later_models_are_compared_with_the_first_pair_by_pair(tasks):
    plan, encoders = Plan(tasks), [Encoder(seed) for seed in range(3)]
    measured = [measure(entry(i), encoder, plan) for i, encoder in enumerate(encoders)]
    found = result_file(measured, plan)["differences"]
    assert [(d["model"], d["baseline"], d["task"]) for d in found] == [
        (model, "m0", task) for model in ("m1", "m2") for task in ("STS13", "STSB")
    ]
    gold = [tasks[1].subsets[0].scores]
    expected = paired_difference(
        measured[2].similarities[1], measured[0].similarities[1], gold, metric="spearman", aggregation="all"
    )
    assert (found[3]["value"], found[3]["ci95"]) == (expected.value, expected.ci95)
    assert found[3]["value"] == pytest.approx(measured[2].results[1]["value"] - measured[0].results[1]["value"])


def test_seeds_take_the_place_of_differences(tasks):
    plan = Plan(tasks)
    results = result_file([measure(entry(i), Encoder(i), plan) for i in range(3)], plan, as_seeds=True)
    assert results["differences"] == []
    values = [r["value"] for r in results["results"] if r["task"] == "STSB"]
    (seeds,) = [s for s in results["seeds"] if s["task"] == "STSB"]
    assert (seeds["mean"], seeds["std"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))


class Scorer(PairScorer):
    """Scores a pair by the length of its texts."""

    def __init__(self):
        pass

    def score(self, pairs, *, show_progress=False):
        return np.array([float(hash(pair) % 97) for pair in pairs])


def test_a_cross_encoder_has_figures_but_no_geometry_and_no_transfer_tasks(tasks):
    plan = Plan(tasks)
    measured = measure(entry(0, "cross-encoder:x"), Scorer(), plan)
    gold = tasks[1].subsets[0]
    scores = Scorer().score(list(zip(gold.sentences1, gold.sentences2, strict=True)))
    assert measured.results[1]["value"] == pytest.approx(100 * spearmanr(scores, gold.scores)[0])
    assert measured.geometry == []
    with pytest.raises(UserError, match="cross-encoder:x: a cross-encoder has no vectors for transfer tasks"):
        measure(entry(0, "cross-encoder:x"), Scorer(), Plan(tasks, transfer=[None]))


def test_a_model_behind_a_prefix_is_looked_for_in_its_own_directory(tasks, tmp_path):
    write_fingerprints(tmp_path, fingerprints([tasks[0].subsets[0].sentences1[:1]]), None)
    trained = measure(entry(0, f"cross-encoder:{tmp_path}"), Scorer(), Plan(tasks)).results[0]["overlap"]
    assert trained["train_rows"] == 1
    fresh = measure(entry(0, f"random:{tmp_path}"), Encoder(0), Plan(tasks)).results[0]["overlap"]
    assert fresh is None


def test_the_overlap_with_the_training_text_is_counted_for_every_task(tasks, tmp_path):
    text = [tasks[0].subsets[0].sentences1[0], "unseen"]
    write_fingerprints(tmp_path, fingerprints([text]), None)
    found = measure(entry(0, tmp_path), Encoder(0), Plan(tasks)).results[0]["overlap"]
    distinct = len(set(tasks[0].sentences))
    assert found == {"train_rows": 1, "of_rows": 2, "sentences": 1, "of_sentences": distinct}


def test_training_is_what_the_run_says(tmp_path):
    assert training_of(tmp_path) is None
    run = {"seed": 3, "commit": "c0", "data": {"train": {"a.txt": "ff"}, "evaluation": {"b": "ee"}}, "best": None}
    (tmp_path / "run.json").write_text(json.dumps(run | {"selected_on_test": True, "status": "done"}))
    expected = {"seed": 3, "commit": "c0", "data": {"a.txt": "ff"}, "best": None, "selected_on_test": True}
    assert training_of(tmp_path) == expected | {"chosen_on": ["ee"]}
    (tmp_path / "run.json").write_text('{"seed": 3}')  # somebody else's file
    assert training_of(tmp_path) is None
