"""A grid on one backbone: all rows with all seeds, and the result file that comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.ablations.grid import Common, DataKind, Grid, GridRow, recipe_of
from eval.ablations.results import GridResult, RowResult, Run, Scores, spread
from eval.ablations.runs import Sets, measure_run, measure_untrained, similarities_on_test, train_run, unavailable
from eval.ablations.statistics import Difference, Sample, differences
from eval.result_files import public_name, write_json
from simcse_kit.data.readers import data_sha256
from simcse_kit.errors import UserError
from simcse_kit.evaluate.results import RECORDED_PACKAGES, package_versions
from simcse_kit.locate import locate
from simcse_kit.train.provenance import commit
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.sections import PoolingName


@dataclass(frozen=True)
class Study:
    """A grid, and what it is run with.

    Attributes:
        name: The grid's.
        grid: The grid.
        common: What all runs have in common.
        sets: What they are measured on.
        output: Folder of the result file and of ``runs``.
        seeds: In the order in which they are run.
        keep_models: Leave the runs' weights where they are once they are measured.
    """

    name: str
    grid: Grid
    common: Common
    sets: Sets
    output: Path
    seeds: Sequence[int]
    keep_models: bool

    @property
    def result_file(self) -> Path:
        """Where the result lies."""
        return self.output / f"{self.name}.json"

    def folder(self, row: GridRow, seed: int) -> Path:
        """Where a run lies."""
        return self.output / "runs" / self.name / f"{row.slug}-{seed}"

    def recipe(self, row: GridRow, seed: int) -> Recipe:
        """The recipe of a run.

        Raises:
            UserError: If the row's and the budget's keys make none.
        """
        return recipe_of(self.grid, row, self.common, seed=seed, output_dir=self.folder(row, seed))

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Why rows cannot be run on this machine, by their name."""
        reasons = {row.name: unavailable(self.recipe(row, self.seeds[0])) for row in self.grid.rows}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @cached_property
    def hashes(self) -> dict[DataKind, dict[str, str]]:
        """Hashes of the training files by kind and name.

        Raises:
            UserError: If one of them is missing.
        """
        kinds = dict.fromkeys(self.grid.data_of(row) for row in self.grid.rows)
        return {
            kind: {Path(name).name: digest for name, digest in data_sha256(self.common.files[kind]).items()}
            for kind in kinds
        }

    @cached_property
    def untrained(self) -> dict[PoolingName, Scores]:
        """The backbone's scores in every pooling in which a row is measured."""
        poolings = [self.grid.pooling or self.recipe(row, self.seeds[0]).model.pooling for row in self.grid.rows]
        return {
            pooling: measure_untrained(self.common.model, self.sets, pooling) for pooling in dict.fromkeys(poolings)
        }

    def check(self) -> None:
        """See that every row can be run, or is known to be skipped, before the first one is.

        Raises:
            UserError: If a row makes no recipe, a training file is missing, or the backbone is.
        """
        for row in self.grid.rows:
            self.recipe(row, self.seeds[0])
        locate(self.common.model)
        self.hashes, self.skipped  # noqa: B018 - both are found out once, here

    def run(self) -> bool:
        """Train and measure what is not there yet, all rows with one seed before the next seed.

        The result file is written anew after every seed, so that an interrupted grid leaves rows that can be compared.

        Returns:
            Whether all runs are complete; else one was interrupted.

        Raises:
            UserError: If a run cannot be made or its loss is no longer finite; the row is named.
        """
        rows = [row for row in self.grid.rows if row.name not in self.skipped]
        runs: dict[str, list[Run]] = {row.name: [] for row in rows}
        for number, seed in enumerate(self.seeds, start=1):
            for row in rows:
                what = f"{self.name}: {row.name}, seed {seed}"
                try:
                    if not train_run(self.recipe(row, seed)):
                        return False
                    run = measure_run(
                        self.folder(row, seed), self.sets, pooling=self.grid.pooling, keep_model=self.keep_models
                    )
                except UserError as error:
                    raise UserError(f"{what}: {error}") from None
                runs[row.name].append(run)
                print(f"{what}: STS-B dev {_shown(run.scores.dev)}, test {_shown(run.scores.test)}", flush=True)
            write_json(self.result_file, self._result(runs, self.seeds[:number]))
        return True

    def _result(self, runs: Mapping[str, list[Run]], seeds: Sequence[int]) -> GridResult:
        found = self._differences(runs, seeds)
        rows = [
            RowResult(
                name=row.name,
                recipe=row.recipe or self.grid.recipe,
                data=self.grid.data_of(row),
                set=row.set,
                published=row.published,
                skipped=self.skipped.get(row.name),
                runs=(own := runs.get(row.name, [])),
                dev=spread([run.scores.dev for run in own]),
                test=spread([run.scores.test for run in own]),
                sts7=spread([run.scores.sts7 for run in own]),
                difference=found.get(row.name),
            )
            for row in self.grid.rows
        ]
        return GridResult(
            grid=self.name,
            title=self.grid.title,
            about=self.grid.about,
            model=public_name(self.common.model),
            pooling=self.grid.pooling,
            data=self.hashes,
            sts_text=self.common.sts_text,
            budget=list(self.common.budget),
            rows_seen=self.common.rows_seen,
            seeds=list(seeds),
            reference=self.grid.reference_row.name,
            untrained=self.untrained,
            untrained_published=self.grid.untrained,
            rows=rows,
            versions=package_versions(RECORDED_PACKAGES),
            commit=commit(),
        )

    def _differences(self, runs: Mapping[str, list[Run]], seeds: Sequence[int]) -> dict[str, Difference]:
        """Of the rows whose figure is defined for every seed, from the reference row, if its figure is too."""
        samples = {}
        for row in self.grid.rows:
            figures = [run.scores.test for run in runs.get(row.name, [])]
            defined = [figure for figure in figures if figure is not None]
            if defined and len(defined) == len(figures):
                similarities = [similarities_on_test(self.folder(row, seed)) for seed in seeds]
                samples[row.name] = Sample(defined, similarities, self.sets.test_gold)
        reference = samples.pop(self.grid.reference_row.name, None)
        if reference is None:
            return {}
        return dict(zip(samples, differences(list(samples.values()), reference), strict=True))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
