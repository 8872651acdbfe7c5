import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from simcse_kit import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.rundir import Checkpoint, Progress, RunDirectory
from simcse_kit.train.stages import stage_recipes

RECORD = {"versions": {}, "data": {"train": {"t.txt": "ab"}}}


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def directory(recipe):
    """A run directory with a run in it: started, of ``recipe()``."""
    return started(recipe())


def started(recipe, status="running"):
    directory = RunDirectory(recipe.output_dir)
    directory.start(recipe, overwrite=False)
    directory.write_run(RECORD, Progress(), status=status)
    return directory


def checkpoint(step, best=None):
    weights = {"w": torch.full((2,), float(step))}
    return Checkpoint(weights, {"state": {0: torch.tensor(step)}}, {"scale": 2.0}, Progress(step, best))


def refused(recipe, *, resume=False, overwrite=False):
    with pytest.raises(UserError) as caught:
        RunDirectory(recipe.output_dir).check(recipe, resume=resume, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_run_may_begin_in_a_new_or_empty_folder_and_checking_makes_none(recipe, tmp_path, make, resume):
    make(tmp_path / "run")
    RunDirectory(tmp_path / "run").check(recipe(), resume=resume, overwrite=not resume)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_run_is_neither_overwritten_nor_resumed_unasked(recipe, directory):
    before = tree(directory.path)
    message = refused(recipe())
    assert "--resume" in message and "--overwrite" in message
    directory.check(recipe(), resume=True, overwrite=False)
    directory.check(recipe(), resume=False, overwrite=True)
    assert "exclude each other" in refused(recipe(), resume=True, overwrite=True)
    assert tree(directory.path) == before


@pytest.mark.parametrize("name", ["thesis.txt", "run.json", "config.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_something_else_is_never_touched(recipe, tmp_path, name, overwrite):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"status": "done"}')
    assert "holds no run" in refused(recipe(), overwrite=overwrite)
    RunDirectory(tmp_path / "run").start(recipe(), overwrite=overwrite)
    assert (tmp_path / "run" / name).read_text() == '{"status": "done"}'


def test_a_place_where_no_folder_can_be_made_is_named(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(recipe(output_dir=str(tmp_path / "file")))
    assert f"{tmp_path / 'file'} is a file" in refused(recipe(output_dir=str(tmp_path / "file" / "run")))


def test_a_folder_without_permission_is_named(recipe, tmp_path, monkeypatch):
    # Nothing is closed to root, so the answer of the system is played.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert f"{tmp_path} is not writable" in refused(recipe(output_dir=str(tmp_path / "new" / "run")))


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/runs/x").path == tmp_path / "runs" / "x"


def test_resuming_with_another_recipe_names_what_changed(recipe, directory):
    changed = recipe(train__lr=2e-3, objectives=[{"temperature": 0.1}], data__columns=["a", "p"])
    message = refused(changed, resume=True)
    assert "train.lr was 0.001, is 0.002" in message
    assert "objectives.0.temperature was 0.05, is 0.1" in message
    assert "data.columns.2 was 'n', is None" in message
    assert message.count(" was ") == 3
    directory.check(changed, resume=False, overwrite=True)


def test_keys_that_recipes_did_not_have_in_a_runs_time_stand_at_their_defaults(recipe, directory):
    content = yaml.safe_load((directory.path / "recipe.yaml").read_text())
    del content["train"]["compile"], content["evaluation"]["allow_test"], content["model"]["new"]
    (directory.path / "recipe.yaml").write_text(yaml.safe_dump(content))
    directory.check(recipe(), resume=True, overwrite=False)
    assert "train.compile was False, is True" in refused(recipe(train__compile=True), resume=True)
    # Keys that are gone are named, as they were.
    (directory.path / "recipe.yaml").write_text(yaml.safe_dump(content | {"gone": 3}))
    assert "gone was 3, is None" in refused(recipe(), resume=True)


def test_a_complete_run_is_not_resumed(recipe):
    started(recipe(), status="done")
    assert "complete" in refused(recipe(), resume=True)


def test_resuming_on_other_data_is_refused(recipe, directory):
    directory.check_same_data(RECORD["data"])
    with pytest.raises(UserError, match="data has changed"):
        directory.check_same_data({"train": {"t.txt": "cd"}})
    RunDirectory(directory.path / "elsewhere").check_same_data(RECORD["data"])


@pytest.mark.parametrize("key", ["model__name", "data__train", "evaluation__data"])
@pytest.mark.parametrize("inside", ["", "kept"])
def test_overwriting_does_not_remove_what_the_recipe_reads(recipe, directory, key, inside):
    inner = directory.path / inside
    inner.mkdir(exist_ok=True)
    message = refused(recipe(**{key: str(inner)}), overwrite=True)
    assert f"--overwrite would remove {key.replace('__', '.')}" in message


def test_overwriting_removes_the_whole_run(recipe, directory):
    directory.log({"kind": "train", "step": 1})
    directory.save_checkpoint(checkpoint(1), keep=1)
    directory.start(recipe(seed=7), overwrite=True)
    assert tree(directory.path).keys() == {(directory.path / "recipe.yaml").relative_to(directory.path)}
    assert yaml.safe_load((directory.path / "recipe.yaml").read_text()) == recipe(seed=7).model_dump()


def test_lines_are_held_back_and_written_in_order(directory):
    path = directory.path / "metrics.jsonl"
    directory.log({"kind": "train", "step": 1, "loss": torch.tensor(0.1), "terms": {"info_nce": torch.tensor(0.5)}})
    assert not path.exists()
    directory.flush()
    for step in range(2, 60):
        directory.log({"kind": "train", "step": step})
    assert len(path.read_text().splitlines()) == 51
    directory.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 60))
    assert lines[0]["loss"] == torch.tensor(0.1).item() and lines[0]["terms"] == {"info_nce": 0.5}  # unrounded


def test_a_loss_that_is_not_finite_stops_the_run_and_an_infinite_norm_does_not(directory):
    directory.log({"kind": "train", "step": 1, "lr": 3.0, "loss": 1.0, "grad_norm": torch.tensor(float("inf"))})
    directory.flush()  # the loss scaler skips such a step
    directory.log({"kind": "train", "step": 2, "lr": 3.0, "loss": torch.tensor(float("nan")), "grad_norm": 1.0})
    with pytest.raises(UserError, match="step 2: the loss is no longer a finite number"):
        directory.flush()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (directory.path / "metrics.jsonl").open()]
    assert (lines[0]["grad_norm"], lines[1]["loss"]) == (None, None)


def test_a_checkpoint_comes_back_as_it_was(directory):
    assert directory.load_checkpoint() is None
    best = {"step": 2, "task": "STSB", "split": "dev", "spearman": 50.5}
    saved = checkpoint(3, best)
    saved.progress.stale, saved.progress.seconds = 4, 1.5
    directory.save_checkpoint(saved, keep=1)
    loaded = directory.load_checkpoint()
    assert loaded.progress == saved.progress
    assert torch.equal(loaded.model["w"], saved.model["w"])
    assert loaded.optimizer == saved.optimizer and loaded.scaler == saved.scaler


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept_by_number_of_steps(directory, keep):
    for step in (5, 95, 100, 1005, 20_000):
        directory.save_checkpoint(checkpoint(step), keep=keep)
    kept = sorted(path.name for path in (directory.path / "checkpoints").iterdir())
    assert [int(name.removeprefix("step-")) for name in kept] == [100, 1005, 20_000][-keep:]
    assert directory.load_checkpoint().progress.step == 20_000


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(directory):
    directory.save_checkpoint(checkpoint(5), keep=1)
    half = directory.path / "checkpoints" / ".saving"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert directory.load_checkpoint().progress.step == 5
    directory.save_checkpoint(checkpoint(6), keep=1)
    assert [path.name for path in half.parent.iterdir()] == ["step-00000006"]


def test_rewinding_drops_the_lines_after_a_step_and_one_cut_off(directory):
    for step in range(1, 6):
        directory.log({"kind": "train", "step": step})
    directory.log({"kind": "eval", "step": 5})
    directory.flush()
    path = directory.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    directory.rewind(5)
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2, 3, 4, 5, 5]
    directory.rewind(3)
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2, 3]
    directory.rewind(0)
    assert path.read_text() == ""


@pytest.mark.parametrize("links", [True, False])
def test_rewinding_brings_back_the_best_model_of_the_checkpoint(directory, tiny_checkpoint, monkeypatch, links):
    if not links:

        def no_link(source, target):
            raise OSError("no hard links here")

        monkeypatch.setattr(os, "link", no_link)
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), pooling="mean", device="cpu")
    encoder.add_head(keep=True)
    directory.save_model(encoder)
    then = tree(directory.path)
    directory.save_checkpoint(checkpoint(3, best={"spearman": 1.0}), keep=1)
    with torch.no_grad():
        encoder.head.linear.bias.add_(1.0)
        encoder.backbone.embeddings.word_embeddings.weight.add_(1.0)
    directory.save_model(encoder)
    later = SentenceEncoder.from_pretrained(directory.path, device="cpu").encode("a cat")
    assert abs(later - encoder.encode("a cat")).max() < 1e-6 and tree(directory.path) != then
    directory.rewind(3)
    shutil.rmtree(directory.path / "checkpoints")
    assert tree(directory.path) == then


def test_the_saved_model_replaces_the_one_before_and_leaves_no_temporary_files(directory, tiny_checkpoint):
    (directory.path / ".saving").mkdir()
    (directory.path / ".saving" / "rest.txt").write_text("of a killed process")
    for _ in range(2):
        directory.save_model(SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), pooling="cls", device="cpu"))
        assert not [path for path in directory.path.rglob("*") if path.name.startswith(".") or "rest" in path.name]
    assert SentenceEncoder.from_pretrained(directory.path, device="cpu").pooling == "cls"


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].joinpath("recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_can_be_resumed_as_it_is_written(path, tmp_path):
    for number, recipe in enumerate(stage_recipes(load_recipe(path, [f"output_dir={tmp_path / 'run'}"]))):
        moved = recipe.model_copy(update={"output_dir": str(tmp_path / str(number))})
        started(moved).check(moved, resume=True, overwrite=False)
