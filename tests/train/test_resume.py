"""A run that was stopped, in whatever way, and resumed ends as one that was not."""

import json
import os
import shutil
import signal

import pytest
import torch
import yaml

from simcse_kit import SentenceEncoder
from simcse_kit.cli.train import main
from simcse_kit.data.sts import load_evaluation
from simcse_kit.errors import UserError
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.train import gradients
from simcse_kit.train.rundir import RunDirectory

# 15 steps; with this seed the best model comes after step 9
STEPS = {"seed": 1, "train__epochs": 5, "train__save_every": 3, "evaluation__every": 2, "train__keep_last": 2}


def outcome(folder):
    """All files of a run by name; of the metrics and run.json what does not tell of time and place."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("metrics.jsonl").splitlines()]
    for line in lines:
        line.pop("seconds", None)
    record = json.loads(files.pop("run.json"))
    del files["recipe.yaml"]
    return files, lines, {key: record[key] for key in ("status", "step", "best", "before", "data")}


@pytest.fixture(scope="module")
def expected():
    """The outcome of the run that nothing stops, once there is one."""
    return {}


@pytest.fixture
def whole(recipe, run, tmp_path, expected):
    if not expected:
        run(recipe(**STEPS, output_dir=str(tmp_path / "whole")))
        expected["outcome"] = outcome(tmp_path / "whole")
    return expected["outcome"]


def after(calls, function, action):
    """``function``, before whose call number ``calls`` an action is taken."""
    count = 0

    def counting(*arguments, **options):
        nonlocal count
        count += 1
        if count == calls:
            action()
        return function(*arguments, **options)

    return counting


def train_until(where, calls, number, path):
    """Train, and send this process a signal before a function of the package is called for the n-th time."""
    home, name = {
        "a step": (gradients, "step_seed"),
        "a checkpoint's optimiser": (torch, "save"),
        "a checkpoint's best model": (shutil, "copytree"),  # which calls itself for folders
        "a file of the best model": (type(path), "replace"),
    }[where]
    setattr(home, name, after(calls, getattr(home, name), lambda: os.kill(os.getpid(), number)))
    raise SystemExit(main([str(path), "--quiet"]))


@pytest.fixture
def stopped(recipe, tmp_path, start):
    """Run until a signal is sent: ``stopped(where, calls, number) -> (recipe file, exit code)``."""

    def run_until(*when):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(**STEPS).model_dump()))
        process = start(train_until, *when, path)
        process.join(120)
        return path, process.exitcode

    return run_until


@pytest.mark.parametrize(
    ("where", "calls", "resumed_from"),
    [
        ("a step", 12, 9),
        ("a step", 3, None),  # before the first checkpoint
        ("a checkpoint's optimiser", 2, 3),
        ("a checkpoint's best model", 4, 3),
        ("a file of the best model", 6, None),
    ],
)
def test_a_killed_run_resumes_to_the_same_end(where, calls, resumed_from, stopped, whole, tmp_path, capsys):
    path, code = stopped(where, calls, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    assert main([str(path), "--resume"]) == 0
    assert outcome(tmp_path / "run") == whole
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed_from"] == resumed_from


def test_an_interrupted_run_leaves_its_best_model_and_resumes_to_the_same_end(stopped, whole, tmp_path, capsys):
    path, code = stopped("a step", 8, signal.SIGINT)
    assert code == 130
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["step"]) == ("interrupted", 8)
    kept = [line for line in whole[1] if line["kind"] == "eval" and line["step"] <= 8 and line["best"]][-1]
    assert record["best"] == {key: kept[key] for key in ("step", "task", "split", "spearman")}
    assert SentenceEncoder.from_pretrained(tmp_path / "run").encode("a cat").shape == (32,)
    assert main([str(path)]) == 2
    assert main([str(path), "--resume"]) == 0
    assert outcome(tmp_path / "run") == whole
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed_from"] == 8
    assert main([str(path), "--resume"]) == 2  # complete


def test_resuming_puts_the_best_model_back_to_the_one_of_the_checkpoint(stopped, recipe, tmp_path):
    stopped("a step", 15, signal.SIGKILL)
    directory = RunDirectory(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    progress = directory.load_checkpoint().progress  # of step 9; the model in place is a later one
    latest = json.loads((tmp_path / "run" / "run.json").read_text())["best"]
    assert progress.step == 9 and latest["step"] > 9 and latest["spearman"] > progress.best["spearman"]
    directory.rewind(9)
    task = load_evaluation(recipe().evaluation.data, task="STSB", split="dev")
    assert score_sts(SentenceEncoder.from_pretrained(tmp_path / "run"), task).value == progress.best["spearman"]


def test_a_run_does_not_go_on_with_other_data(recipe, run, tmp_path, files):
    table = tmp_path / "rows.csv"
    shutil.copy(files / "triplets.csv", table)
    content = recipe(data__train=str(table))
    directory = RunDirectory(content.output_dir)
    run(content)
    record = json.loads((directory.path / "run.json").read_text())
    (directory.path / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    with table.open("a") as file:
        file.write("a cat,a dog,a ball\n")
    with pytest.raises(UserError, match="data has changed"):
        run(content, resume=True)
