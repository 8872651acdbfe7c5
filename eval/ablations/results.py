"""The result file of a grid: every run's figures, what they were made with, and the rows' differences.

The models below are the file's shape, key for key. Figures are Spearman correlations x100, unrounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from eval.ablations.grid import DataKind
from eval.ablations.statistics import Difference
from eval.result_files import read_json
from simcse_kit.train.sections import PoolingName


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Overlap(_Entry):
    """How much of STS-B test a model was trained on (see ``simcse_kit.data.overlap``)."""

    train_rows: int
    of_rows: int
    sentences: int
    of_sentences: int


class Scores(_Entry):
    """What one model scores.

    Attributes:
        weights_sha256: The model's.
        dev: On STS-B dev, which chooses the best model of a run; None where it is undefined, like the others.
        test: On STS-B test.
        tasks: On each of the seven STS tasks, if they were asked for.
        sts7: The papers' average of these.
        alignment: Of the vectors of STS-B test, like the next one (see ``simcse_kit.evaluate.geometry``).
        uniformity: Lower is better for both.
        overlap: What the training text shares with STS-B test; None for an untrained model.
        sets: Hashes of the evaluation sets by task and split.
    """

    weights_sha256: str
    dev: float | None
    test: float | None
    tasks: dict[str, float | None]
    sts7: float | None
    alignment: float | None
    uniformity: float | None
    overlap: Overlap | None
    sets: dict[str, str]


class Run(_Entry):
    """One run: its seed, the step of its best model, how many steps it had and how long they took, losses, scores."""

    seed: int
    step: int | None
    steps: int
    seconds: float
    first_loss: float | None
    last_loss: float | None
    scores: Scores


class Spread(_Entry):
    """A figure over seeds; ``std`` (n - 1 in the denominator) is None for one seed."""

    mean: float
    std: float | None


class RowResult(_Entry):
    """One row.

    Attributes:
        name: As the grid has it, like the next four.
        recipe: File name without ``.yaml``.
        data: What it learned from.
        set: Overrides of its own.
        published: Id of a published row.
        skipped: Why it was not run; None if it was.
        runs: One a seed.
        dev: Over seeds; None where it is undefined for one of them, like the next two.
        test: Over seeds.
        sts7: Over seeds.
        difference: From the reference row; None for that row itself, and where a figure is undefined.
    """

    name: str
    recipe: str
    data: DataKind
    set: dict[str, Any]
    published: str | None
    skipped: str | None
    runs: list[Run]
    dev: Spread | None
    test: Spread | None
    sts7: Spread | None
    difference: Difference | None


class GridResult(_Entry):
    """The whole file.

    Attributes:
        grid: The grid's name.
        title: As the grid has it, like the next one.
        about: What the table shows.
        model: The backbone; of a directory the last part of its path.
        pooling: In which all rows were measured; None: each in its own.
        data: Hashes of the training files by kind and name.
        sts_text: ``disk`` or ``raw``.
        budget: Overrides of all rows.
        rows_seen: Training rows that each run saw; None: as the recipe and the budget say.
        seeds: Those that all rows have been run with.
        reference: The row that the others are compared with.
        untrained: The backbone's scores by pooling.
        untrained_published: Ids of published rows for these, by pooling.
        rows: In the grid's order.
        versions: Of the packages.
        commit: Of the source tree.
    """

    grid: str
    title: str
    about: str
    model: str
    pooling: PoolingName | None
    data: dict[DataKind, dict[str, str]]
    sts_text: str
    budget: list[str]
    rows_seen: int | None
    seeds: list[int]
    reference: str
    untrained: dict[PoolingName, Scores]
    untrained_published: dict[PoolingName, str]
    rows: list[RowResult]
    versions: dict[str, str]
    commit: str | None


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and standard deviation over seeds; None if there is no value or one is undefined."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    return Spread(mean=fmean(defined), std=stdev(defined) if len(defined) > 1 else None)


def read_grid_result(path: Path) -> GridResult:
    """Read a result file.

    Raises:
        UserError: If it is not one.
    """
    return read_json(path, TypeAdapter(GridResult), "eval.ablations")
