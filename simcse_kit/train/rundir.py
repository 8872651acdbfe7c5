"""The run directory: the best model, recipe.yaml, run.json, metrics.jsonl, and checkpoints to resume from."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simcse_kit.backbone import each_once
from simcse_kit.data.overlap import FINGERPRINTS_FILE
from simcse_kit.data.readers import expand
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.output import check_can_be_made, replacing
from simcse_kit.train.recipe import Recipe

_RUN, _RECIPE, _METRICS, _CHECKPOINTS = "run.json", "recipe.yaml", "metrics.jsonl", "checkpoints"
_BEST = "best"
BESIDE_MODEL = (_RUN, _RECIPE, _METRICS, _CHECKPOINTS, FINGERPRINTS_FILE)
"""What a run directory holds beside the model."""
# Lines are held back so that the numbers of a step need not be waited for; at most this many are lost with a crash.
_BUFFERED_LINES = 50


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        best: The best evaluation so far: ``step``, ``task``, ``split``, ``spearman``; or None.
        stale: Evaluations since then.
        before: The evaluation before the first step, or None.
        seconds: Time spent training and evaluating, over all sittings.
        chunk_size: Rows of a process that were encoded at a time in the last step; None: all of them. It decides the
            random draws, so a resumed run goes on with it.
    """

    step: int = 0
    best: dict[str, Any] | None = None
    stale: int = 0
    before: dict[str, Any] | None = None
    seconds: float = 0.0
    chunk_size: int | None = None

    def note_score(self, score: dict[str, Any]) -> bool:
        """Keep an evaluation if it is the best so far (strictly, as the reference does); say whether it is."""
        best = self.best["spearman"] if self.best else -math.inf
        better: bool = score["spearman"] is not None and score["spearman"] > best
        if better:
            self.best, self.stale = score, 0
        else:
            self.stale += 1
        return better


@dataclass(frozen=True)
class Checkpoint:
    """What resuming needs: the states of the model, the optimiser and the loss scaler, and how far the run is.

    Of a tensor that the model has under several names, such as tied word embeddings, a written one has the first alone.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: Progress


class RunDirectory:
    """The files of one run. Every file is complete at any time: it is written beside its place and then moved there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lines: list[dict[str, Any]] = []

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse to start where something is in the way, before anything is written.

        Raises:
            UserError: If the folder cannot be made, holds a run and neither ``resume`` nor ``overwrite`` is asked for,
                holds something else, holds what the recipe itself reads and ``overwrite`` would remove, or holds a run
                that is complete or of another recipe than the one to resume.
        """
        path = self.path
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other")
        check_can_be_made(path, f"output_dir {path}")
        if not path.is_dir() or not any(path.iterdir()):
            return
        run = self.read_run()
        if run is None:
            raise UserError(f"output_dir {path}: the folder is not empty and holds no run; choose another one")
        if not resume and not overwrite:
            raise UserError(f"output_dir {path} already holds a run; add --resume to go on with it, or --overwrite")
        if overwrite:
            _check_nothing_read_lies_in(path, recipe)
        else:
            _check_same_recipe(path, recipe)
            if run["status"] == "done":
                raise UserError(f"output_dir {path}: this run is complete; there is nothing to resume")

    def has_done(self, recipe: Recipe) -> bool:
        """Whether the folder holds a complete run of this recipe.

        Raises:
            UserError: If it holds a run of another recipe.
        """
        run = self.read_run()
        if run is None or run["status"] != "done":
            return False
        _check_same_recipe(self.path, recipe)
        return True

    def check_same_data(self, hashes: dict[str, Any]) -> None:
        """Refuse to resume on other data than the run began with.

        Raises:
            UserError: If the data of the run that is here, if any, has other hashes.
        """
        run = self.read_run()
        if run is not None and run["data"] != hashes:
            raise UserError(
                f"output_dir {self.path}: the data has changed since this run began; --overwrite starts anew"
            )

    def start(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Make the folder and write the resolved recipe; ``overwrite`` removes the run that was there."""
        if overwrite and self.read_run() is not None:
            shutil.rmtree(self.path.resolve())  # which may be a link
            self.path.resolve().mkdir()
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / _RECIPE, yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True))

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; its numbers may be tensors that are still being computed."""
        self._lines.append(line)
        if len(self._lines) >= _BUFFERED_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the lines held back; a number that is not finite is written as null.

        Raises:
            UserError: If one of them has a loss that is not finite: the training has diverged.
        """
        lines = [_plain(line) for line in self._lines]
        self._lines.clear()
        if lines:
            with (self.path / _METRICS).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines:
            if "lr" in line:
                check_loss(line)

    def write_run(self, record: dict[str, Any], progress: Progress, *, status: str) -> None:
        """Write run.json: where the run comes from, how far it is, and ``running``, ``interrupted`` or ``done``."""
        content = {**record, "status": status, **asdict(progress)}
        del content["stale"]
        _write(self.path / _RUN, json.dumps(content, indent=2) + "\n")

    def read_run(self) -> dict[str, Any] | None:
        """What run.json says, or None if there is none, or one that is not ours."""
        try:
            content = json.loads((self.path / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        ours = isinstance(content, dict) and {"versions", "data", "status"} <= content.keys()
        return content if ours else None

    def save_model(self, encoder: SentenceEncoder, **options: Any) -> None:
        """Put the model into the folder, in place of the one that was there; options as for ``save_pretrained``."""
        shutil.rmtree(self._staged, ignore_errors=True)
        encoder.save_pretrained(self._staged, **options)
        self._put_model()

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write a checkpoint, the best model so far included, and drop all but the last ``keep``."""
        self.flush()
        home = self.path / _CHECKPOINTS
        staged, final = home / ".saving", home / f"step-{checkpoint.progress.step:08d}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        state = {name: tensor.cpu().contiguous() for name, tensor in each_once(checkpoint.model).items()}
        save_file(state, staged / "model.safetensors")
        torch.save({"optimizer": checkpoint.optimizer, "scaler": checkpoint.scaler}, staged / "optimizer.pt")
        _write(staged / "progress.json", json.dumps(asdict(checkpoint.progress)))
        if checkpoint.progress.best is not None:
            others = shutil.ignore_patterns(*BESIDE_MODEL, ".*")
            shutil.copytree(self.path, staged / _BEST, ignore=others, copy_function=_link)
        staged.replace(final)
        for old in self._checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None if there is none."""
        checkpoints = self._checkpoints()
        if not checkpoints:
            return None
        last = checkpoints[-1]
        states = torch.load(last / "optimizer.pt", map_location="cpu", weights_only=True)
        progress = Progress(**json.loads((last / "progress.json").read_text(encoding="utf-8")))
        return Checkpoint(load_file(last / "model.safetensors"), states["optimizer"], states["scaler"], progress)

    def rewind(self, step: int) -> None:
        """Put metrics.jsonl and the best model back to where they were at the checkpoint of ``step`` (0: the start)."""
        path = self.path / _METRICS
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line that a crash cut off is of a step after the checkpoint; the start has lines of its own.
            kept = [line for line in lines if step and line.endswith("\n") and json.loads(line)["step"] <= step]
            _write(path, "".join(kept))
        best = self.path / _CHECKPOINTS / f"step-{step:08d}" / _BEST
        if best.is_dir():
            shutil.rmtree(self._staged, ignore_errors=True)
            shutil.copytree(best, self._staged, copy_function=_link)
            self._put_model()

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a run that is complete."""
        shutil.rmtree(self.path / _CHECKPOINTS, ignore_errors=True)

    @property
    def _staged(self) -> Path:
        return self.path / ".saving"

    def _put_model(self) -> None:
        for item in sorted(self._staged.rglob("*")):
            target = self.path / item.relative_to(self._staged)
            if item.is_dir():
                target.mkdir(exist_ok=True)
            else:
                item.replace(target)
        shutil.rmtree(self._staged)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / _CHECKPOINTS).glob("step-*"))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _link(source: str, target: str) -> None:
    """Copy a file that is replaced and never changed: as a second name of it, where the file system has such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_nothing_read_lies_in(path: Path, recipe: Recipe) -> None:
    train = recipe.data.train
    read = {
        "model.name": [recipe.model.name],
        "data.train": [train] if isinstance(train, str) else train,
        "evaluation.data": [recipe.evaluation.data or ""],
        "report.data": [recipe.report.data if recipe.report else ""],
    }
    for key, names in read.items():
        for name in names:
            if name and any(_lies_in(path, place) for place in _places(name)):
                raise UserError(f"output_dir {path}: --overwrite would remove {key} {name}; choose another folder")


def check_loss(line: dict[str, Any]) -> None:
    """See that the loss of a step, as a line of metrics.jsonl has it, is a finite number.

    Raises:
        UserError: If it is not: the training has diverged.
    """
    if _plain(line)["loss"] is None:
        raise UserError(
            f"step {line['step']}: the loss is no longer a finite number; lower train.lr, {line['lr']:g} there"
        )


def _places(name: str) -> list[Path]:
    """The file or folder of a name, or the files of a pattern."""
    place = Path(name).expanduser()
    pattern = not place.exists() and any(character in name for character in "*?[")
    return [Path(each) for each in expand(name)] if pattern else [place]


def _lies_in(path: Path, place: Path) -> bool:
    return place.exists() and place.resolve().is_relative_to(path.resolve())


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    before = _flat(_recipe_before(path))
    now = _flat(recipe.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        named = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise UserError(f"output_dir {path}: the run to resume has another recipe: {named}")


def _recipe_before(path: Path) -> Any:
    """The recipe of a run; keys that recipes did not have in its time stand at their defaults."""
    content = yaml.safe_load((path / _RECIPE).read_text(encoding="utf-8"))
    try:
        return Recipe.model_validate(content).model_dump(mode="json")
    except ValidationError:  # it had keys that are gone, or names what is gone
        return content


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of dotted keys, as overrides name them."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if items is None:
        return {prefix: content}
    return {
        inner: value
        for key, item in items
        for inner, value in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }
