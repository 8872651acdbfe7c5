"""The slots of a pre-training: runs that go on with one another's model, and what they measured."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from eval.mini.licences import read_licences
from simcse_kit.data.preparation import prepare_tokens
from simcse_kit.data.tokens import tokens_directory
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.objectives.masked_lm import MaskedLM
from simcse_kit.train.held_out import HeldOut
from simcse_kit.train.loop import Outcome, train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.rows import TokenRows
from simcse_kit.train.rundir import RunDirectory

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain-mini.yaml"
VOCABULARY = 16_384
TEXTS = "*.txt.xz"

_SEED = 42
# The share of a slot's steps in which the learning rate rises: later slots only have to find the moments anew.
_FIRST_WARMUP, _LATER_WARMUP = 0.05, 0.02
# The pace is taken between these steps, once everything is compiled; the second is a multiple of the first.
_PACE_FROM, _PACE_TO = 50, 150
# Minutes kept back for writing the model.
_RESERVE = 0.4


@dataclass(frozen=True)
class Clock:
    """What a slot may take: so many minutes from ``started`` on, or so many steps."""

    minutes: float | None
    steps: int | None
    started: float

    @property
    def seconds_left(self) -> float:
        """Until the reserve begins."""
        assert self.minutes is not None
        return (self.minutes - _RESERVE) * 60 - (time.perf_counter() - self.started)


@dataclass(frozen=True)
class Slot:
    """A slot that was trained, wholly or in part."""

    path: Path

    @property
    def run(self) -> dict[str, Any]:
        """Its run.json."""
        content: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        return content

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return Recipe.model_validate(yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8")))

    @property
    def tokens(self) -> int:
        """How many tokens it has seen."""
        recipe = self.recipe
        return int(self.run["step"]) * recipe.train.batch_size * recipe.model.max_length

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """What it measured on held-out text, in the order of its steps."""
        lines = map(json.loads, (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["kind"] == "held_out"]

    @property
    def summary(self) -> str:
        """Its steps, its pace and what it measured, in a line."""
        run, measured = self.run, self.held_out
        return (
            f"{self.path.name}: {run['step']:,} of {run['steps']:,} steps in {run['seconds']:,.0f} s, "
            f"{self.tokens / run['seconds']:,.0f} tokens/s, held-out loss {measured[0]['loss']:.3f} to "
            f"{measured[-1]['loss']:.3f}, accuracy {measured[-1]['accuracy']:.1%}"
        )

    @property
    def is_done(self) -> bool:
        """Whether all of its steps are done."""
        return bool(self.run["status"] == "done")


class _Watch(HeldOut):
    """Notes the times at which it is asked to measure, and measures nothing."""

    def __init__(self, rows: TokenRows) -> None:
        super().__init__(rows)
        self.times: list[float] = []

    def measure(self, encoder: SentenceEncoder, masked_lm: MaskedLM) -> dict[str, Any]:
        """Note the time, once the device has done what it was told."""
        next(encoder.parameters()).sum().item()
        self.times.append(time.perf_counter())
        return {"loss": 0.0, "accuracy": 0.0, "tokens": 0}


class Slots:
    """The slots in a folder, ``slot-1``, ``slot-2`` and so on."""

    def __init__(self, output: Path, tokens: Path, overrides: list[str]) -> None:
        """Name the places.

        Args:
            output: The folder of the slots.
            tokens: The directory of tokens, if it is there, or where it will be.
            overrides: Keys of the recipe to set.
        """
        self.output, self._tokens, self._overrides = output, tokens, overrides

    @property
    def found(self) -> list[Slot]:
        """The slots that are there."""
        paths = (self.output / f"slot-{number}" for number in range(1, 1_000))
        found = []
        for path in paths:
            if RunDirectory(path).read_run() is None:
                break
            found.append(Slot(path))
        return found

    def train(self, corpus: Path, clock: Clock, *, last: bool, quiet: bool) -> Outcome:
        """Train the next slot, or go on with one that was interrupted.

        Raises:
            UserError: If the text or the model before cannot be read, there is no time left to train, or the slot
                before was the last one.
        """
        found = self.found
        if found and not found[-1].is_done:
            recipe = found[-1].recipe
            self._prepare(corpus, found[:-1], quiet=quiet)
            return _train(recipe, resume=True, quiet=quiet)
        if found and is_last(found[-1]):
            raise UserError(f"{found[-1].path}: was trained with --last; `python -m eval.mini finish {self.output}`")
        self._prepare(corpus, found, quiet=quiet)
        steps = clock.steps or self._steps(found, clock)
        return _train(self._recipe(found, steps, last=last), resume=False, quiet=quiet)

    def report(self) -> list[str]:
        """A line on each slot."""
        return [slot.summary for slot in self.found]

    def _prepare(self, corpus: Path, before: list[Slot], *, quiet: bool) -> None:
        if tokens_directory(self._tokens) is not None:
            return
        read_licences(corpus.glob(TEXTS))  # rather now than when all is trained
        self._tokens.parent.mkdir(parents=True, exist_ok=True)
        prepare_tokens(
            [str(corpus / TEXTS)],
            self._tokens,
            vocabulary_size=VOCABULARY,
            tokenizer=str(before[-1].path) if before else None,
            seed=_SEED,
            quiet=quiet,
        )

    def _recipe(self, before: list[Slot], steps: int, *, last: bool) -> Recipe:
        """The recipe of the slot behind some others."""
        number = len(before) + 1
        start = [f"model.name={before[-1].path}", "model.new=null"] if before else [f"model.name={self._tokens}"]
        keys = {
            "data.train": self._tokens,
            "train.max_steps": steps,
            "train.schedule": "linear" if last else "constant",
            "train.warmup_ratio": _LATER_WARMUP if before else _FIRST_WARMUP,
            "seed": _SEED + number,
            "output_dir": self.output / f"slot-{number}",
        }
        return load_recipe(RECIPE, [*self._overrides, *start, *(f"{key}={value}" for key, value in keys.items())])

    def _steps(self, before: list[Slot], clock: Clock) -> int:
        """How many steps fit into the time that is left, by the pace of a few."""
        recipe = self._recipe(before, _PACE_TO, last=False)
        evaluation = recipe.evaluation.model_copy(update={"every": _PACE_FROM})
        prepared = prepare(recipe.model_copy(update={"evaluation": evaluation}))
        held_out, masked_lm = prepared.held_out, prepared.masked_lm
        assert held_out is not None and masked_lm is not None
        watch = _Watch(held_out.rows)
        with tempfile.TemporaryDirectory() as folder:
            trial = train(replace(prepared, held_out=watch), RunDirectory(Path(folder) / "trial"), quiet=True)
        if trial.interrupted:
            raise KeyboardInterrupt
        pace = (watch.times[-1] - watch.times[1]) / (_PACE_TO - _PACE_FROM)
        begun = time.perf_counter()
        held_out.measure(prepared.encoder, masked_lm)
        measuring = time.perf_counter() - begun
        # Measured before the first step, every so many, and behind the last one.
        every = recipe.evaluation.every or math.inf
        steps = int((clock.seconds_left - 2 * measuring) / (pace + measuring / every))
        if steps < _PACE_TO:
            raise UserError(f"--minutes {clock.minutes:g}: at {pace:.2f} s a step there is no time left to train")
        return steps


def is_last(slot: Slot) -> bool:
    """Whether the learning rate fell to 0 at the end of a slot."""
    return slot.recipe.train.schedule != "constant"


def _train(recipe: Recipe, *, resume: bool, quiet: bool) -> Outcome:
    directory = RunDirectory(recipe.output_dir)
    directory.check(recipe, resume=resume, overwrite=False)
    return train(prepare(recipe), directory, resume=resume, quiet=quiet)
