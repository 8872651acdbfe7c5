"""The result file, and its table."""

import json

import pytest
from rich.console import Console

from simcse_kit import __version__
from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.errors import UserError
from simcse_kit.evaluate.results import averages, package_versions, read_results, write_results
from simcse_kit.evaluate.table import results_table


def model(i=0, **changes):
    own = {"id": f"m{i}", "path": "path/to/model", "weights_sha256": "ab12", "pooling": "cls", "head": "mlp"}
    return own | {"normalize": False, "dtype": "bfloat16", "max_length": 32, "training": None} | changes


def entry(task, value, i=0, **changes):
    transfer = task in TRANSFER_TASKS
    protocol = {"text": "disk", "classifier": "senteval" if transfer else None, "data_sha256": "cd34"}
    own = {"model": f"m{i}", "task": task, "split": "test", "metric": "accuracy" if transfer else "spearman"}
    own |= {"aggregation": None if transfer else "all", "protocol": protocol, "value": value, "reason": None}
    return own | {"n": 59, "ci95": None, "subsets": {}, "overlap": None} | changes


def file(models, results, **parts):
    empty = {"seeds": [], "differences": [], "geometry": [], "versions": {}}
    return {"models": models, "results": results, "averages": averages(models, results)} | empty | parts


def printed(results):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(results_table(results))
    return [line.strip() for line in capture.get().splitlines()]


def two_models():
    complete = [entry(name, 70 + i + 0.004) for i, name in enumerate(STS_TASKS)]
    broken = [entry(name, 60.0, 1) for name in STS_TASKS[:5]]
    broken += [entry(name, None, 1, reason=f"no figure for {name}") for name in STS_TASKS[5:]]
    return file([model(0), model(1)], complete + broken)


def test_averages_are_of_values_rounded_to_two_decimals_and_absent_where_one_is_missing():
    assert two_models()["averages"] == [{"model": "m0", "name": "sts7", "value": pytest.approx(73.0, abs=1e-12)}]
    accuracies = [entry(name, 80.005 + i) for i, name in enumerate(TRANSFER_TASKS)]
    f1 = entry("MRPC", 10.0, metric="f1")
    (average,) = averages([model()], [*accuracies, f1])
    assert average["name"] == "transfer7"
    assert average["value"] == pytest.approx(sum(round(80.005 + i, 2) for i in range(7)) / 7)
    assert averages([model()], [*accuracies[1:], f1]) == []
    assert averages([model()], [r | {"split": "dev"} for r in accuracies]) == []


def test_the_table_is_laid_out_as_the_papers_do():
    lines = printed(two_models())
    cells = [line.split() for line in lines]
    assert ["Model", "STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "Avg."] in cells
    name = ["path/to/model", "(cls", "+", "mlp)"]
    assert [*name, "70.00", "71.00", "72.00", "73.00", "74.00", "75.00", "76.00", "73.00"] in cells
    assert [*name, "60.00", "60.00", "60.00", "60.00", "60.00", "-[1]", "-[2]", "-"] in cells
    assert lines[-3:] == [
        "Spearman x100; aggregation: all (pairs of all subsets together); split: test; text: as on disk (tokenised)",
        "[1] STS-B of path/to/model: no figure for STSB",
        "[2] SICK-R of path/to/model: no figure for SICKR",
    ]


def test_a_table_without_any_average_has_no_column_for_it():
    assert ["Model", "STS-B"] in [line.split() for line in printed(file([model()], [entry("STSB", 82.0324)]))]


def test_transfer_tasks_have_a_table_of_their_own():
    results = [entry("STSB", 82.0), entry("MRPC", 75.25), entry("MRPC", 82.75, metric="f1")]
    lines = printed(file([model()], results))
    cells = [line.split() for line in lines]
    assert ["Model", "MRPC", "MRPC", "F1"] in cells
    assert ["path/to/model", "(cls", "+", "mlp)", "75.25", "82.75"] in cells
    assert lines[-1] == "Accuracy and F1 x100; classifier: senteval; split: test; text: as on disk (tokenised)"


def test_intervals_overlaps_and_the_set_a_model_was_chosen_on_are_shown():
    seen = {"train_rows": 509, "of_rows": 29722, "sentences": 12, "of_sentences": 2758}
    training = {"seed": 1, "commit": None, "data": {}, "selected_on_test": False}
    training["best"] = {"step": 3, "task": "STSB", "split": "dev", "spearman": 87.0}
    chosen = entry("STSB", 87.0, split="dev", ci95=(86.0, 88.5), overlap=seen)
    unseen = entry("SICKR", 77.0, overlap=seen | {"train_rows": 0, "sentences": 0})
    lines = printed(file([model(training=training)], [chosen, unseen]))
    cells = [line.split() for line in lines]
    assert ["path/to/model", "(cls", "+", "mlp)", "87.00[1][2]", "77.00"] in cells
    assert ["±1.25"] in cells
    assert lines[-2:] == [
        "[1] path/to/model was trained on text of STS-B: 12 of its 2,758 sentences are in 509 of 29,722 training rows",
        "[2] path/to/model was chosen on STS-B dev, so this is no test of it",
    ]
    assert lines[-3].endswith("±: half the 95% bootstrap interval")


def test_seeds_differences_and_geometry_are_shown():
    models, results = [model(0), model(1)], [entry("STSB", 80.0), entry("STSB", 82.0, 1)]
    seeds = [{"models": ["m0", "m1"], "task": "STSB", "metric": "spearman", "mean": 81.0, "std": 1.41421, "n": 2}]
    lines = [line.split() for line in printed(file(models, results, seeds=seeds))]
    assert ["mean", "±", "standard", "deviation", "of", "2", "seeds", "81.00"] in lines and ["±1.41"] in lines

    difference = {"model": "m1", "baseline": "m0", "task": "STSB", "value": -2.0, "ci95": (-3.25, 0.5)}
    shape = {"model": "m1", "task": "STSB", "split": "test", "text": "disk", "alignment": 0.25, "uniformity": -2.5}
    shape |= {"anisotropy": None, "effective_rank": 111.5}
    lines = [line.split() for line in printed(file(models, results, differences=[difference], geometry=[shape]))]
    assert ["path/to/model", "(cls", "+", "mlp)", "-2.00"] in lines and ["[-3.25,", "+0.50]"] in lines
    assert ["path/to/model", "(cls", "+", "mlp)", "0.250", "-2.500", "-", "111.500"] in lines


def test_versions_are_those_installed():
    import torch

    assert package_versions(["torch"]) == {"simcse_kit": __version__, "torch": torch.__version__}


def test_a_result_file_is_written_unrounded_replaces_the_old_one_whole_and_is_read_again(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    results = two_models()
    write_results(path, results)
    assert read_results(path) == json.loads(json.dumps(results))
    assert '"value": 70.004' in path.read_text()
    before = path.read_text()
    results["averages"][0]["value"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, results)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_a_result_file_without_what_was_added_later_is_read_too(tmp_path):
    results = two_models()
    for part in ("seeds", "differences", "geometry"):
        del results[part]
    for entry in [*results["models"], *results["results"]]:
        entry.pop("training", None), entry.pop("overlap", None)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    read = read_results(path)
    assert (read["seeds"], read["differences"], read["geometry"]) == ([], [], [])
    assert read["models"][0]["training"] is None and read["results"][0]["overlap"] is None
    printed(read)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[1]", "not a result"),
        ('{"models": 3, "results": {}, "averages": 1}', "not a result"),
        ('{"models": [{}], "results": [], "averages": []}', "not a result"),
    ],
)
def test_a_file_that_is_no_result_file_is_refused(tmp_path, content, says):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says):
        read_results(path)


def test_a_set_of_ones_own_that_chose_a_model_is_known_by_its_data():
    training = {"seed": 1, "commit": None, "data": {}, "selected_on_test": False}
    training |= {"best": {"step": 3, "task": "STSB", "split": "dev", "spearman": 87.0}}
    figure = entry("my-pairs", 87.0)
    hashes = [figure["protocol"]["data_sha256"]]
    for chosen_on, noted in ((hashes, True), (["other"], False)):
        lines = printed(file([model(training=training | {"chosen_on": chosen_on})], [figure]))
        assert any("was chosen on my-pairs" in line for line in lines) == noted
