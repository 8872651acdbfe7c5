"""The run directory: the best model, recipe.yaml, run.json, metrics.jsonl, and checkpoints to resume from."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.output import replacing
from simcse_kit.train.recipe import Recipe

_RUN, _RECIPE, _METRICS, _CHECKPOINTS = "run.json", "recipe.yaml", "metrics.jsonl", "checkpoints"
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
    """

    step: int = 0
    best: dict[str, Any] | None = None
    stale: int = 0
    before: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """What resuming needs: the states of the model, the optimiser and the loss scaler, and how far the run is."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: Progress


class RunDirectory:
    """The files of one run. Every file is complete at any time: it is written beside its place and then moved there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = []

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Refuse to start where something is in the way, before anything is written.

        Raises:
            UserError: If the folder holds a run and neither ``resume`` nor ``overwrite`` is asked for, holds something
                else, or holds a run of another recipe than the one to resume.
        """
        path = self.path
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other")
        if path.exists() and not path.is_dir():
            raise UserError(f"output_dir {path}: there is a file of this name")
        if not path.is_dir() or not any(path.iterdir()):
            return
        if not (path / _RUN).is_file():
            raise UserError(f"output_dir {path}: the folder is not empty and holds no run; choose another one")
        if not resume and not overwrite:
            raise UserError(f"output_dir {path} already holds a run; add --resume to go on with it, or --overwrite")
        if resume:
            _check_same_recipe(path, recipe)
            if json.loads((path / _RUN).read_text())["status"] == "done":
                raise UserError(f"output_dir {path}: this run is complete; there is nothing to resume")

    def start(self, recipe: Recipe, *, overwrite: bool) -> None:
        """Make the folder and write the resolved recipe; ``overwrite`` removes the run that was there."""
        if overwrite and (self.path / _RUN).is_file():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / _RECIPE, yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True))

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; its numbers may be tensors that are still being computed."""
        self._lines.append(line)
        if len(self._lines) >= _BUFFERED_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the lines held back."""
        if self._lines:
            with (self.path / _METRICS).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_plain(line)) + "\n" for line in self._lines)
            self._lines.clear()

    def write_run(self, content: dict[str, Any]) -> None:
        """Write run.json."""
        _write(self.path / _RUN, json.dumps(content, indent=2) + "\n")

    def save_model(self, encoder: SentenceEncoder) -> None:
        """Put the model into the folder, in place of the one that was there."""
        staged = self.path / ".saving"
        shutil.rmtree(staged, ignore_errors=True)
        encoder.save_pretrained(staged)
        for item in sorted(staged.rglob("*")):
            target = self.path / item.relative_to(staged)
            if item.is_dir():
                target.mkdir(exist_ok=True)
            else:
                item.replace(target)
        shutil.rmtree(staged)

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write a checkpoint, and drop all but the last ``keep``."""
        self.flush()
        home = self.path / _CHECKPOINTS
        staged, final = home / ".saving", home / f"step-{checkpoint.progress.step:08d}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        model = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()}
        save_file(model, staged / "model.safetensors")
        torch.save({"optimizer": checkpoint.optimizer, "scaler": checkpoint.scaler}, staged / "optimizer.pt")
        _write(staged / "progress.json", json.dumps(asdict(checkpoint.progress)))
        shutil.rmtree(final, ignore_errors=True)
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

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which a resumed run takes again."""
        path = self.path / _METRICS
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            # A line that a crash cut off is of a step after the checkpoint.
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        _write(path, "".join(kept))

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a run that is complete."""
        shutil.rmtree(self.path / _CHECKPOINTS, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / _CHECKPOINTS).glob("step-*"))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    before = _flat(yaml.safe_load((path / _RECIPE).read_text(encoding="utf-8")))
    now = _flat(recipe.model_dump())
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        named = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise UserError(f"output_dir {path}: the run to resume has another recipe: {named}")


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys."""
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        inner: value
        for key, item in content.items()
        for inner, value in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }
