"""simcse-train: run a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from simcse_kit.cli.common import EXIT_INTERRUPTED, command_app, output_console, run

if TYPE_CHECKING:
    from rich.console import Console

    from simcse_kit.data.sts import StsTask
    from simcse_kit.train.loop import Outcome
    from simcse_kit.train.recipe import Recipe
    from simcse_kit.train.report import Report

app = command_app()


@app.command()
def simcse_train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="What to train, on what, how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key.path=value ...]", help="Keys to override, e.g. train.lr=1e-5 seed=1."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Validate everything and say what would run.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that output_dir holds.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress, only what came of it.")] = False,
) -> int:
    """Train a sentence encoder as a recipe says.

    The best model, the resolved recipe, run.json and metrics.jsonl go to the recipe's output_dir. On several GPUs:
    accelerate launch -m simcse_kit.cli.train RECIPE.yaml
    """
    from simcse_kit.train.recipe_file import load_recipe
    from simcse_kit.train.stages import stage_recipes

    runs = stage_recipes(load_recipe(recipe, overrides))
    if check:
        from simcse_kit.train.plan import describe

        first, *later = runs
        stages = [describe(first), *(describe(stage, start=first.model) for stage in later)]
        print("\n\n".join("\n".join(lines) for lines in stages))
        return 0
    return _train_all(runs, resume=resume, overwrite=overwrite, quiet=quiet)


def _train_all(runs: list[Recipe], *, resume: bool, overwrite: bool, quiet: bool) -> int:
    """Train a recipe's stages, or its one run, passing over the stages that a run to resume has done."""
    from simcse_kit.train.distributed import leave
    from simcse_kit.train.rundir import RunDirectory

    *stages, last = runs
    left = [stage for stage in stages if not (resume and RunDirectory(stage.output_dir).has_done(stage))] + [last]
    for each in left:
        RunDirectory(each.output_dir).check(each, resume=resume, overwrite=overwrite)
    for each in left:
        outcome = _train(each, resume=resume, overwrite=overwrite, quiet=quiet)
        if outcome.stopped:
            break
    leave()
    return EXIT_INTERRUPTED if outcome.interrupted or each is not last else 0


def _train(recipe: Recipe, *, resume: bool, overwrite: bool, quiet: bool) -> Outcome:
    from simcse_kit.train.loop import train
    from simcse_kit.train.prepare import prepare
    from simcse_kit.train.report import open_task, report_on
    from simcse_kit.train.rundir import RunDirectory

    run_directory = RunDirectory(recipe.output_dir)
    report_task = open_task(recipe.report)
    prepared = prepare(recipe)
    main = prepared.accelerator.is_main_process
    console = output_console()
    before = None
    if main and report_task is not None and recipe.report is not None:
        before = report_on(prepared.encoder, report_task, recipe.report.neighbours)
    outcome = train(prepared, run_directory, resume=resume, overwrite=overwrite, quiet=quiet)
    if main:
        if report_task is not None and before is not None and recipe.report is not None and not outcome.interrupted:
            after = report_on(outcome.encoder, report_task, recipe.report.neighbours)
            _print_report(console, report_task, before, after)
        _print_outcome(console, recipe, outcome)
    return outcome


def _print_report(console: Console, task: StsTask, before: Report, after: Report) -> None:
    """What the model makes of the report's set, before and after."""
    from rich.table import Table

    if before.neighbours:
        table = Table(
            "sentence",
            "nearest before",
            "nearest after",
            title=f"Nearest neighbours in {_label(task.name)} {task.split}",
        )
        for old, new in zip(before.neighbours, after.neighbours, strict=True):
            table.add_row(old.query, f"{old.nearest} ({old.cosine:.2f})", f"{new.nearest} ({new.cosine:.2f})")
        console.print(table)
    figures = f"{_figure(before.spearman)} before, {_figure(after.spearman)} after"
    console.print(f"{_label(task.name)} {task.split}: Spearman {figures}")


def _print_outcome(console: Console, recipe: Recipe, outcome: Outcome) -> None:
    progress = outcome.progress
    if progress.best:
        best, first = progress.best, progress.before["spearman"] if progress.before else None
        console.print(
            f"{_label(best['task'])} {best['split']}: Spearman {_figure(first)} before, {_figure(best['spearman'])} "
            f"at step {best['step']}, the best of {progress.step}"
        )
    where = "stopped; go on with --resume. The best model so far" if outcome.interrupted else "The model"
    console.print(f"{where} is in {recipe.output_dir} ({progress.seconds:.0f} s)", soft_wrap=True)


def _label(task: str) -> str:
    """A task's name, with a word of warning where its text and scores are made up."""
    return f"{task} (synthetic)" if task == "scenes" else task


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


if __name__ == "__main__":
    sys.exit(main())
