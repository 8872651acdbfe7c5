"""Which figures are compared, and which are refused."""

from statistics import fmean, stdev

import pytest

from simcse_kit.errors import UserError
from simcse_kit.evaluate.compare import check_comparable, merge, over_seeds

SHA = "ab" * 32
VERSIONS = {"simcse_kit": "1"}


def model(i, **changes):
    own = {"id": f"m{i}", "path": f"runs/{i}", "weights_sha256": str(i), "training": None}
    return own | {"pooling": "cls", "head": "mlp", "normalize": False, "dtype": "float32", "max_length": 32} | changes


def trained(seed, data=SHA):
    return {"seed": seed, "commit": None, "data": {"a.txt": data}, "best": None, "selected_on_test": False}


def entry(value=50.0, model="m0", **changes):
    protocol = {"text": "disk", "classifier": None, "data_sha256": SHA} | changes.pop("protocol", {})
    own = {"model": model, "task": "STS12", "split": "test", "metric": "spearman", "aggregation": "all", "n": 3108}
    rest = {"reason": None, "ci95": None, "subsets": {}, "overlap": None}
    return own | {"protocol": protocol, "value": value} | rest | changes


def file(models, results):
    empty = {"seeds": [], "differences": [], "geometry": [], "versions": VERSIONS}
    averages = [{"model": models[0]["id"], "name": "sts7", "value": 60.0}]
    return {"models": models, "results": results, "averages": averages} | empty


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"aggregation": "wmean"}, "aggregation all against wmean"),
        ({"metric": "pearson"}, "metric spearman against pearson"),
        ({"split": "dev"}, "split test against dev"),
        ({"n": 9927}, "n 3108 against 9927"),
        ({"protocol": {"text": "raw"}}, "text disk against raw"),
        ({"protocol": {"classifier": "linear"}}, "classifier None against linear"),
        ({"protocol": {"data_sha256": "cd" * 32}}, "data_sha256 abababababab… against cdcdcdcdcdcd…"),
        ({"aggregation": "mean", "split": "dev"}, "split test against dev, aggregation all against mean"),
    ],
)
def test_figures_of_different_protocols_are_refused_and_the_difference_is_named(change, named):
    check_comparable(entry(50.0), entry(51.0, model="m7", reason="other"))
    with pytest.raises(UserError) as refused:
        check_comparable(entry(), entry(**change))
    assert str(refused.value) == f"STS12: figures of different protocol are not compared: {named}"


def test_files_are_merged_under_new_ids():
    one = file([model(0)], [entry(1.0), entry(2.0, task="STSB", n=1379)])
    other = file([model(0, path="x"), model(1, path="y")], [entry(3.0), entry(4.0, model="m1")])
    merged = merge({"one": one, "other": other})
    assert [(m["id"], m["path"]) for m in merged["models"]] == [("m0", "runs/0"), ("m1", "x"), ("m2", "y")]
    found = [(r["model"], r["task"], r["value"]) for r in merged["results"]]
    assert found == [("m0", "STS12", 1.0), ("m0", "STSB", 2.0), ("m1", "STS12", 3.0), ("m2", "STS12", 4.0)]
    assert [a["model"] for a in merged["averages"]] == ["m0", "m1"]


def test_files_of_different_protocols_or_tasks_are_not_merged():
    one, other = file([model(0)], [entry()]), file([model(0)], [entry(aggregation="mean")])
    with pytest.raises(UserError, match="STS12: figures of different protocol"):
        merge({"one": one, "other": other})
    with pytest.raises(UserError, match="metric spearman against pearson"):
        merge({"one": one, "other": file([model(0)], [entry(metric="pearson")])})
    with pytest.raises(UserError, match="other: has no task in common with the files before it"):
        merge({"one": one, "other": file([model(0)], [entry(task="STSB")])})


def test_mean_and_deviation_over_seeds():
    models = [model(i, training=trained(seed=i)) for i in range(3)]
    values = [70.0, 73.5, 71.25]
    results = [entry(value, model=f"m{i}") for i, value in enumerate(values)]
    results += [entry(value, model=f"m{i}", task="STSB") for i, value in enumerate([1.0, None, 2.0])]
    averages = [{"model": f"m{i}", "name": "sts7", "value": 2 * value} for i, value in enumerate(values)]
    first, average = over_seeds(models, results, averages)  # none for the task with a null figure
    assert (first["task"], first["n"], first["models"]) == ("STS12", 3, ["m0", "m1", "m2"])
    assert (first["mean"], first["std"]) == (pytest.approx(fmean(values)), pytest.approx(stdev(values)))
    assert first["protocol"] == results[0]["protocol"]
    assert (average["task"], average["mean"], average["metric"]) == ("sts7", pytest.approx(2 * fmean(values)), None)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ([model(0)], "at least two models"),
        ([model(0), model(1, pooling="mean")], "runs/0 and runs/1 are not seeds of one system: pooling cls against me"),
        ([model(0, training=trained(1)), model(1)], "training data .* against None"),
        ([model(0, training=trained(1)), model(1, training=trained(1))], "several of the models .* seed 1"),
        ([model(0), model(1, weights_sha256="0")], "two of the models have the same weights"),
        ([model(0, training=trained(1)), model(1, training=trained(2, "cd" * 32))], "training data"),
    ],
)
def test_what_is_not_seeds_of_one_system_is_refused(models, says):
    with pytest.raises(UserError, match=says):
        over_seeds(models, [entry(model=m["id"]) for m in models], [])
