import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr

from simcse_kit.cli import eval as command
from simcse_kit.data.senteval import data_root
from simcse_kit.evaluate import systems

DATA = data_root()
MODEL = "all-MiniLM-L6-v2"
PAIRS = [
    ("A man is playing a guitar.", "A man plays the guitar.", 4.8),
    ("A woman slices an onion.", "Someone is cutting a vegetable.", 3.6),
    ("Two dogs run on the beach.", "The market fell sharply today.", 0.0),
    ("The senate passed the bill.", "The bill was rejected by the senate.", 2.2),
    ("A child reads a book.", "A kid is reading.", 4.1),
    ("A boat lies in the harbour.", "The recipe needs two eggs.", 0.2),
]


def write_pairs(path, golds):
    lines = [f"{a},{b},{gold}\n" for (a, b, _), gold in zip(PAIRS, golds, strict=True)]
    path.write_text("".join(["sentence1,sentence2,score\n", *lines]))
    return path


@pytest.fixture
def own_file(tmp_path):
    return write_pairs(tmp_path / "my-pairs.v1.csv", [gold for *_, gold in PAIRS])


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(systems, "open_system", refuse)


def cosines():
    from simcse_kit import encode

    u, v = (encode([pair[side] for pair in PAIRS]).astype(float) for side in (0, 1))
    return (u * v).sum(axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)


@pytest.mark.parametrize(("metric", "correlation"), [("spearman", spearmanr), ("pearson", pearsonr)])
def test_two_models_on_a_file_of_ones_own(own_file, tmp_path, capsys, metric, correlation):
    result = tmp_path / "result.json"
    args = [MODEL, f"sentence-transformers/{MODEL}", "--data", str(own_file), "--metric", metric]
    assert command.main([*args, "--json", str(result), "--max-length", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    written = json.loads(result.read_text())
    expected = 100 * correlation(cosines(), [gold for *_, gold in PAIRS])[0]
    assert [model["max_length"] for model in written["models"]] == [64, 64]
    assert [model["path"] for model in written["models"]] == [MODEL, f"sentence-transformers/{MODEL}"]
    assert [(r["model"], r["task"], r["metric"], r["n"]) for r in written["results"]] == [
        ("m0", "my-pairs.v1", metric, 6),
        ("m1", "my-pairs.v1", metric, 6),
    ]
    assert [r["value"] for r in written["results"]] == pytest.approx([expected] * 2, abs=1e-4)
    assert out.count(f"{expected:.2f}") == 2 and "my-pairs.v1" in out


def test_constant_gold_gives_null_with_its_reason(tmp_path, capsys):
    path, result = write_pairs(tmp_path / "flat.csv", [3] * len(PAIRS)), tmp_path / "result.json"
    assert command.main([MODEL, "--data", str(path), "--json", str(result)]) == 0
    (entry,) = json.loads(result.read_text())["results"]
    assert (entry["value"], entry["reason"]) == (None, "all 6 gold scores are equal (3)")
    assert f"[1] flat of {MODEL}: all 6 gold scores are equal (3)" in capsys.readouterr().out


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "SICK-E"], "no task 'SICK-E' (did you mean 'SICKR'?); there are sts, transfer, all, STS12"),
        (["--tasks", ""], "--tasks: no task ''"),
        (["--data", "{folder}", "--tasks", "mrpc"], "MRPC: no folder MRPC in"),
        (["--data", "hub:owner", "--tasks", "STSB"], "'hub:owner' is not of the form hub:owner/name@revision"),
        (["--data", "{own}", "--classifier", "svm"], "'svm' is not one of 'senteval', 'linear'"),
        (["--split", "dev"], "only STSB and SICKR have a dev split; ask for --tasks STSB,SICKR"),
        (["--tasks", "sts", "--text", "raw"], "only STSB is there in raw text; ask for --tasks STSB"),
        (["--tasks", "STSB,MR", "--text", "raw"], "only STSB is there in raw text; ask for --tasks STSB"),
        (["--data", "{own}", "--text", "raw"], "only STSB is there in raw text; ask for --tasks STSB"),
        (["--split", "train"], "'train' is not one of 'test', 'dev'"),
        (["--data", "{folder}/missing"], "missing: there is no such folder or file"),
        (["--data", "{folder}", "--tasks", "STSB"], "STSB: no folder STS/STSBenchmark in"),
        (["--data", "{own}", "--data", "{own}"], "two tasks would be named 'my-pairs.v1'"),
        (["--data", "hf://datasets/owner/name/stsb.csv.gz"], "would be named like a task of the papers"),
        (["--data", "{own}", "--json", "{folder}/missing/x.json"], "missing' does not exist"),
        (["--data", "{own}", "--json", "{folder}"], "is a directory"),
        (["--data", "{own}", "nosuchmodel///"], "model 'nosuchmodel///'"),
        (["--data", "{own}", "--pooling", "cls", f"cross-encoder:{MODEL}"], "a cross-encoder has no pooling to choose"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_opened(args, message, own_file, tmp_path, capsys):
    result = tmp_path / "result.json"
    filled = [arg.format(folder=tmp_path, own=own_file) for arg in args]
    options = filled if "--json" in args else [*filled, "--json", str(result)]
    assert command.main([MODEL, *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" and sorted(tmp_path.iterdir()) == [own_file]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--device", "gpu"], "--device gpu: "),
        (["--dtype", "int4"], "dtype 'int4' is unknown"),
        (["--pooling", "average"], "pooling 'average' is unknown"),
    ],
)
def test_an_option_that_does_not_fit_the_model_is_one_line(option, message, own_file, tmp_path, capsys):
    result = tmp_path / "result.json"
    assert command.main([MODEL, "--data", str(own_file), "--json", str(result), *option]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1
    assert out == "" and not result.exists()


class LetterCounts:
    """An encoder that costs nothing."""

    source, weights_sha256, pooling, head_name, normalize, dtype, max_length = MODEL, "", "none", "none", False, "", 0

    def encode(self, sentences, **options):
        return np.array([[text.count(letter) for letter in "aehinorst "] for text in sentences], dtype=np.float32)


def figures(tmp_path, *args):
    result = tmp_path / "result.json"
    assert command.main([MODEL, "--data", str(DATA / "sts"), "--json", str(result), *args]) == 0
    written = json.loads(result.read_text())
    averages = {average["name"]: average["value"] for average in written["averages"]}
    return {entry["task"]: entry["value"] for entry in written["results"]} | averages


needs_data = pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")


@needs_data
@pytest.mark.reference
@pytest.mark.parametrize(
    ("split", "text", "published"),
    [("test", "disk", 82.03), ("dev", "raw", 86.72)],  # sentence-transformers gives the same on both texts
)
def test_sts_benchmark_of_minilm(tmp_path, split, text, published):
    values = figures(tmp_path, "--tasks", "sts-b", "--split", split, "--text", text)
    assert values == {"STSB": pytest.approx(published, abs=0.02)}


@needs_data
@pytest.mark.reference
def test_all_seven_tasks_are_measured_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(systems, "open_system", lambda *args, **options: LetterCounts())
    values = figures(tmp_path)
    assert list(values) == ["STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR", "sts7"]
    average = values.pop("sts7")
    assert average == pytest.approx(sum(round(value, 2) for value in values.values()) / 7, abs=1e-9)
    shown = [f"{value:.2f}" for value in (*values.values(), average)]
    assert [MODEL, "(none)", *shown] in [line.split() for line in capsys.readouterr().out.splitlines()]


@needs_data
@pytest.mark.reference
def test_transfer_and_sts_tasks_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "open_system", lambda *args, **options: LetterCounts())
    transfer = ["--data", str(DATA / "transfer"), "--classifier", "linear"]
    values = figures(tmp_path, "--tasks", "stsb,trec,cr", *transfer)
    assert list(values) == ["STSB", "TREC", "CR"]
    assert 64 < values["CR"] < 100 and 22 < values["TREC"] < 100  # above the largest class


@needs_data
@pytest.mark.reference
@pytest.mark.slow
def test_the_seven_tasks_of_minilm(tmp_path):
    values = figures(tmp_path, "--tasks", "sts")
    del values["sts7"]
    # sentence-transformers' vectors of the same sentences give these figures
    peer = {"STS12": 72.37, "STS13": 80.6, "STS14": 75.59, "STS15": 85.39, "STS16": 78.99, "STSB": 82.03}
    assert values == pytest.approx(peer | {"SICKR": 77.15}, abs=0.02)


@pytest.mark.usefixtures("no_network")
def test_pickled_weights_are_opened_where_that_is_allowed(tiny_checkpoint, own_file, tmp_path, capsys):
    folder = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    arguments = [str(folder), "--data", str(own_file)]
    assert command.main(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert command.main([*arguments, "--allow-pickle"]) == 0


def test_what_is_not_seeds_of_one_system_is_refused_before_anything_is_measured(
    tiny_checkpoint, own_file, monkeypatch, capsys
):
    monkeypatch.setattr("simcse_kit.evaluate.measure.measure", None)
    model = str(tiny_checkpoint("bert"))
    assert command.main([model, model, "--as-seeds", "--data", str(own_file)]) == 2
    assert "two of the models have the same weights" in capsys.readouterr().err
