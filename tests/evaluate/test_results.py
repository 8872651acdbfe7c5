import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from simcse_kit import __version__
from simcse_kit.data.sts import STS_TASKS, StsSubset, StsTask
from simcse_kit.evaluate.results import describe_model, result_file, write_results
from simcse_kit.evaluate.sts import Figure, StsScore
from simcse_kit.evaluate.table import results_table

ENCODER = SimpleNamespace(
    source="path/to/model",
    weights_sha256="ab12",
    pooling="cls",
    head_name="mlp",
    normalize=False,
    dtype=torch.bfloat16,
    max_length=32,
)


def score(task, value, *, reason=None, subsets=(), aggregation="all"):
    loaded = StsTask(task, "test", "disk", (StsSubset(task, ["a"], ["b"], np.ones(1)),), "cd34")
    return StsScore(loaded, "spearman", aggregation, Figure(value, 59, reason), dict(subsets))


def printed(results):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get().splitlines()


def test_a_result_file_has_the_keys_that_others_build_on():
    subsets = {"MSRpar": Figure(55.123456, 50), "MSRvid": Figure(None, 9, "all 9 gold scores are equal (2)")}
    scores = [
        score("STS12", 55.5123456, subsets=subsets),
        score("STSB", None, reason="all 59 cosine similarities are equal (1)", aggregation="mean"),
    ]
    results = result_file([describe_model("m0", ENCODER)], {"m0": scores})
    versions = results.pop("versions")
    assert versions["simcse_kit"] == __version__ and versions["torch"] == torch.__version__
    assert results == {
        "models": [
            {
                "id": "m0",
                "path": "path/to/model",
                "weights_sha256": "ab12",
                "pooling": "cls",
                "head": "mlp",
                "normalize": False,
                "dtype": "bfloat16",
                "max_length": 32,
            }
        ],
        "results": [
            {
                "model": "m0",
                "task": "STS12",
                "split": "test",
                "metric": "spearman",
                "aggregation": "all",
                "protocol": {"text": "disk", "classifier": None, "data_sha256": "cd34"},
                "value": 55.5123456,
                "reason": None,
                "n": 59,
                "ci95": None,
                "subsets": {
                    "MSRpar": {"value": 55.123456, "n": 50},
                    "MSRvid": {"value": None, "n": 9, "reason": "all 9 gold scores are equal (2)"},
                },
            },
            {
                "model": "m0",
                "task": "STSB",
                "split": "test",
                "metric": "spearman",
                "aggregation": "mean",
                "protocol": {"text": "disk", "classifier": None, "data_sha256": "cd34"},
                "value": None,
                "reason": "all 59 cosine similarities are equal (1)",
                "n": 59,
                "ci95": None,
                "subsets": {},
            },
        ],
        "averages": [],
    }


def two_models():
    models = [describe_model(model_id, ENCODER) for model_id in ("m0", "m1")]
    complete = [score(name, 70 + i + 0.004) for i, name in enumerate(STS_TASKS)]
    broken = [score(name, 60.0) for name in STS_TASKS[:5]]
    broken += [score(name, None, reason=f"no figure for {name}") for name in STS_TASKS[5:]]
    return result_file(models, {"m0": complete, "m1": broken})


def test_the_average_is_absent_for_a_model_that_lacks_a_figure():
    assert two_models()["averages"] == [{"model": "m0", "name": "sts7", "value": pytest.approx(73.0, abs=1e-12)}]


def test_the_table_is_laid_out_as_the_papers_do():
    lines = printed(two_models())
    cells = [line.split() for line in lines]
    assert ["Model", "STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "Avg."] in cells
    name = ["path/to/model", "(cls", "+", "mlp)"]
    assert [*name, "70.00", "71.00", "72.00", "73.00", "74.00", "75.00", "76.00", "73.00"] in cells
    assert [*name, "60.00", "60.00", "60.00", "60.00", "60.00", "-[1]", "-[2]", "-"] in cells
    assert [line.strip() for line in lines[-3:]] == [
        "Spearman x100; aggregation: all (pairs of all subsets together); split: test; text: as on disk (tokenised)",
        "[1] STS-B of path/to/model: no figure for STSB",
        "[2] SICK-R of path/to/model: no figure for SICKR",
    ]


def test_a_table_without_any_average_has_no_column_for_it():
    results = result_file([describe_model("m0", ENCODER)], {"m0": [score("STSB", 82.0324)]})
    assert ["Model", "STS-B"] in [line.split() for line in printed(results)]


def test_a_result_file_is_written_unrounded_and_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    results = two_models()
    write_results(path, results)
    assert json.loads(path.read_text()) == json.loads(json.dumps(results))
    assert '"value": 70.004' in path.read_text()
    before = path.read_text()
    results["averages"][0]["value"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, results)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
