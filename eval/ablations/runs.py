"""One run of a grid: trained as simcse-train does it, resumed where it was interrupted, and measured once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.ablations.results import Overlap, Run, Scores
from simcse_kit.augment.text import open_text_augmentation
from simcse_kit.data.sts import STS_TASKS, StsTask, load_sts_task
from simcse_kit.errors import UserError
from simcse_kit.evaluate.measure import Measurement, Plan, describe, measure
from simcse_kit.evaluate.results import averages
from simcse_kit.evaluate.systems import open_system
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import RunDirectory

if TYPE_CHECKING:
    from simcse_kit.evaluate.systems import System

# What augmentations need that a machine may not have.
_NEEDED = {"synonym": "WordNet", "masked_lm": "masked language model for this"}
_SCORES, _SIMILARITIES = "scores.json", "similarities.npy"


@dataclass(frozen=True)
class Sets:
    """What runs are measured on: STS-B dev, STS-B test, and the other STS tasks if they were asked for."""

    dev: StsTask
    test: StsTask
    others: tuple[StsTask, ...] = ()

    @classmethod
    def load(cls, folder: Path, *, text: Literal["disk", "raw"], all_tasks: bool) -> Sets:
        """Load the sets from a folder in SentEval's layout.

        Raises:
            UserError: If one is missing or malformed, or the papers' average is asked for over raw text.
        """
        if all_tasks and text == "raw":
            raise UserError("--tasks sts: the papers' average is of SentEval's text; leave --sts-text raw out")
        dev, test = (load_sts_task("STSB", [folder], split=split, text=text) for split in ("dev", "test"))
        names = [name for name in STS_TASKS if name != "STSB"] if all_tasks else []
        return cls(dev, test, tuple(load_sts_task(name, [folder]) for name in names))

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each set by task and split."""
        return {f"{task.name} {task.split}": task.data_sha256 for task in (self.dev, self.test, *self.others)}

    @property
    def test_gold(self) -> NDArray[np.float64]:
        """Gold scores of STS-B test [n]."""
        (subset,) = self.test.subsets
        return subset.scores


def unavailable(recipe: Recipe) -> str | None:
    """Why this machine cannot make a recipe's views, if it cannot; the details go to standard error."""
    for view in recipe.views:
        if view.text is not None and view.text.name in _NEEDED:
            try:
                open_text_augmentation(view.text.name, **view.text.settings)
            except UserError as error:
                print(error, file=sys.stderr)
                return f"the machine had no {_NEEDED[view.text.name]}"
    return None


def train_run(recipe: Recipe) -> bool:
    """Train a recipe into its folder: from the start, from where it was interrupted, or not at all if it is complete.

    Returns:
        Whether it is complete now; else it was interrupted.

    Raises:
        UserError: If something in the recipe is not as it should be, or the folder holds something else.
    """
    directory = RunDirectory(recipe.output_dir)
    if directory.has_done(recipe):
        return True
    resume = directory.read_run() is not None
    directory.check(recipe, resume=resume, overwrite=False)
    return not train(prepare(recipe), directory, resume=resume, quiet=not sys.stderr.isatty()).interrupted


def measure_run(folder: Path, sets: Sets, *, pooling: str | None, keep_model: bool) -> Run:
    """Measure the best model of a complete run, unless that was done before.

    Args:
        folder: The run's.
        sets: What to measure it on.
        pooling: In which; None: its own.
        keep_model: Leave its weights in the folder.

    Raises:
        UserError: If it was measured on other sets and its weights are gone.
    """
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    scores = _scores_before(folder, sets)
    if scores is None:
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder}: was measured on other sets, and its model is gone; start with a new --output")
        # Encoding dev again in the same pooling would give the same figure.
        chosen_by = run["best"]["spearman"] if run["best"] and pooling is None else None
        scores, similarities = _measured(str(folder), sets, pooling, dev=chosen_by)
        np.save(folder / _SIMILARITIES, similarities)
        (folder / _SCORES).write_text(scores.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if not keep_model:
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
    losses = [line["loss"] for line in _training_lines(folder)]
    return Run(
        seed=run["seed"],
        step=run["best"]["step"] if run["best"] else None,
        steps=run["step"],
        seconds=run["seconds"],
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        scores=scores,
    )


def similarities_on_test(folder: Path) -> NDArray[np.float64]:
    """The predictions [n] of a measured run for STS-B test."""
    similarities: NDArray[np.float64] = np.load(folder / _SIMILARITIES)
    return similarities


def measure_untrained(model: str, sets: Sets, pooling: str) -> Scores:
    """Measure the backbone as it is.

    Raises:
        UserError: If it cannot be opened.
    """
    return _measured(model, sets, pooling)[0]


def _measured(
    model: str, sets: Sets, pooling: str | None, *, dev: float | None = None
) -> tuple[Scores, NDArray[np.float64]]:
    """A model's scores, and its predictions for STS-B test; `dev` is its figure on STS-B dev where it is known."""
    scores, measurement = measure_system(open_system(model, pooling=pooling), sets, dev=dev)
    return scores, measurement.similarities[0][0]


def measure_system(system: System, sets: Sets, *, dev: float | None = None) -> tuple[Scores, Measurement]:
    """Measure a system.

    Args:
        system: It.
        sets: What to measure it on.
        dev: Its figure on STS-B dev, where it is known and need not be measured.

    Returns:
        Its scores, and what they were taken from: STS-B test, the other sets and, unless its figure is known, dev.
    """
    plan = Plan([sets.test, *sets.others, *([sets.dev] if dev is None else [])])
    measurement = measure(describe("m0", system), system, plan)
    test, *others = measurement.results
    if dev is None:
        dev = others.pop()["value"]
    seven = [average["value"] for average in averages([measurement.model], [test, *others])]
    shape = measurement.geometry[0]
    scores = Scores(
        weights_sha256=measurement.model["weights_sha256"],
        dev=dev,
        test=test["value"],
        tasks={entry["task"]: entry["value"] for entry in [*others, test]} if others else {},
        sts7=seven[0] if seven else None,
        alignment=shape["alignment"],
        uniformity=shape["uniformity"],
        overlap=None if test["overlap"] is None else Overlap(**test["overlap"]),
        sets=sets.hashes,
    )
    return scores, measurement


def _scores_before(folder: Path, sets: Sets) -> Scores | None:
    """What a run scored when it was measured before, if it was, and on the same sets."""
    path = folder / _SCORES
    if not path.is_file():
        return None
    scores = Scores.model_validate_json(path.read_text(encoding="utf-8"))
    return scores if scores.sets == sets.hashes else None


def _training_lines(folder: Path) -> Iterator[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return (line for line in map(json.loads, lines) if line["kind"] == "train")
