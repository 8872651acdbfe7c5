"""`simcse-eval`: measure models on STS and transfer tasks; a table for people, a result file for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simcse_kit.cli.common import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    MaxLengthOption,
    PoolingOption,
    command_app,
    opening,
    output_console,
    run,
)
from simcse_kit.errors import UserError

if TYPE_CHECKING:
    from simcse_kit.data.sts import StsTask
    from simcse_kit.data.transfer import TransferTask
    from simcse_kit.evaluate.systems import System

_TASKS_WITH_DEV = ("STSB", "SICKR")
_TASKS_WITH_RAW = ("STSB",)

app = command_app()


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Directories, packaged models' names or hub ids; words:FILE averages the word vectors of a text "
            "file, random:MODEL has a model's architecture and fresh weights, cross-encoder:MODEL reads both "
            "sentences of a pair at once.",
            metavar="MODEL",
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="sts (the seven of the papers; the default unless --data names files only), transfer (SentEval's "
            "seven), all, or some, as in STSB,STS12,MR.",
            metavar="sts|transfer|all|NAMES",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder in SentEval's layout (by default the one cached or fetched from the hub), or scored pairs "
            "of your own, which are a task named after them: a csv, tsv, jsonl or parquet file with columns "
            "sentence1, sentence2, score, hf://datasets/owner/name@revision/file or hub:owner/name@revision:split. "
            "Repeatable.",
            metavar="PATH",
        ),
    ] = None,
    split: Annotated[
        Literal["test", "dev"],
        typer.Option(
            help="STS-B and SICK-R have a dev split; of transfer tasks dev is the accuracy that the classifier's "
            "regularisation is chosen by."
        ),
    ] = "test",
    aggregation: Annotated[
        Literal["all", "mean", "wmean"],
        typer.Option(
            help="How STS12-16 combine their subsets: one correlation over all pairs, as in the papers, or the mean "
            "of the subsets' correlations, plain or weighted by pairs."
        ),
    ] = "all",
    metric: Annotated[Literal["spearman", "pearson"], typer.Option(help="The correlation.")] = "spearman",
    text: Annotated[Literal["disk", "raw"], typer.Option(help="STS-B as SentEval tokenises it, or raw.")] = "disk",
    classifier: Annotated[
        Literal["senteval", "linear"],
        typer.Option(help="Of transfer tasks: SentEval's, as in the papers, or scikit-learn's, which is faster."),
    ] = "senteval",
    as_seeds: Annotated[
        bool,
        typer.Option("--as-seeds", help="The models are seeds of one system: report mean and standard deviation."),
    ] = False,
    pooling: PoolingOption = None,
    max_length: MaxLengthOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    allow_pickle: AllowPickleOption = False,
    json: Annotated[
        Path | None, typer.Option(help="Write the result file here, replacing one that is there.", metavar="FILE")
    ] = None,
) -> None:
    """Measure sentence encoders on semantic textual similarity and transfer tasks, by the protocol of the papers."""
    from simcse_kit.evaluate.compare import check_one_system, check_seed_count
    from simcse_kit.evaluate.measure import Plan, check_fits, describe, measure, result_file
    from simcse_kit.evaluate.results import write_results
    from simcse_kit.evaluate.systems import check_system, open_system
    from simcse_kit.evaluate.table import results_table
    from simcse_kit.evaluate.word_vectors import vocabulary_of
    from simcse_kit.output import check_output

    if as_seeds:
        check_seed_count(models)
    if json is not None:
        check_output(json)
    sts, transfer = _load_tasks(tasks, data or [], split, text)
    plan = Plan(sts, transfer, metric, aggregation, classifier, split)
    for model in models:
        check_system(model, pooling=pooling, max_length=max_length, dtype=dtype, allow_pickle=allow_pickle)
        check_fits(model, plan)
    words, showing = vocabulary_of(plan.sentences), sys.stderr.isatty()

    def opened(model: str) -> System:
        with opening(model, device):
            return open_system(
                model,
                pooling=pooling,
                max_length=max_length,
                device=device,
                dtype=dtype,
                vocabulary=words,
                allow_pickle=allow_pickle,
            )

    if as_seeds:
        check_one_system([describe(f"m{i}", opened(model)) for i, model in enumerate(models)])
    measurements = []
    for i, model in enumerate(models):
        system = opened(model)
        measurements.append(measure(describe(f"m{i}", system), system, plan, show_progress=showing))
    results = result_file(measurements, plan, as_seeds=as_seeds)
    if json is not None:
        write_results(json, results)
    output_console().print(results_table(results))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def _load_tasks(
    tasks: str | None, data: Sequence[str], split: str, text: str
) -> tuple[list[StsTask], list[TransferTask]]:
    """Load the tasks asked for, and each set of pairs in `data` as a task of its own."""
    from simcse_kit.data.senteval import senteval_folders
    from simcse_kit.data.sts import STS_TASKS, load_evaluation, load_senteval_task, load_sts_task
    from simcse_kit.data.transfer import TRANSFER_TASKS, load_transfer_task

    folders, sets = [], []
    for source in data:
        path = Path(source).expanduser()
        if not _is_remote(source) and path.is_dir():
            folders.append(path)
        elif _is_remote(source) or path.exists():
            sets.append(source)
        else:
            raise UserError(f"--data {source}: there is no such folder or file")
    for source in sets:
        if _name_of(source).upper() in (*STS_TASKS, *TRANSFER_TASKS):
            raise UserError(f"--data {source}: would be named like a task of the papers; rename the file")
    only_sets = tasks is None and sets and not folders
    sts, transfer = ([], []) if only_sets else _task_names("sts" if tasks is None else tasks)
    if split == "dev" and not set(sts).issubset(_TASKS_WITH_DEV):
        raise UserError("--split dev: only STSB and SICKR have a dev split; ask for --tasks STSB,SICKR")
    if text == "raw" and {*sts, *transfer} != {*_TASKS_WITH_RAW}:
        raise UserError("--text raw: only STSB is there in raw text; ask for --tasks STSB")
    load = partial(load_sts_task, data=folders) if folders else load_senteval_task
    loaded = [load(name, split=split, text=text) for name in sts]
    loaded += [load_evaluation(source, task=_name_of(source), split=split) for source in sets]
    names = [task.name for task in loaded]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--data: two tasks would be named {name!r}; rename the file")
    if transfer and not folders:
        folders = senteval_folders()
    return loaded, [load_transfer_task(name, folders) for name in transfer]


def _is_remote(source: str) -> bool:
    return source.startswith(("hf://", "hub:"))


def _name_of(source: str) -> str:
    """The task name of a set of pairs: the file's without the suffixes of format and compression, or the hub's."""
    if source.startswith("hub:"):
        return source.removeprefix("hub:")
    return Path(Path(source).name.removesuffix(".gz").removesuffix(".xz")).stem


def _task_names(tasks: str) -> tuple[list[str], list[str]]:
    """Resolve `--tasks`: names in any case, with or without a hyphen, each once and in the order given."""
    from simcse_kit.data.rows import did_you_mean
    from simcse_kit.data.sts import STS_TASKS
    from simcse_kit.data.transfer import TRANSFER_TASKS

    every = (*STS_TASKS, *TRANSFER_TASKS)
    known = {name: (name,) for name in every} | {"STS": STS_TASKS, "TRANSFER": TRANSFER_TASKS, "ALL": every}
    names: dict[str, None] = {}
    for item in tasks.split(","):
        name = item.strip().upper().replace("-", "")
        if name not in known:
            close = did_you_mean(name, known)
            raise UserError(
                f"--tasks: no task {item.strip()!r}{close}; there are sts, transfer, all, {', '.join(every)}"
            )
        names.update(dict.fromkeys(known[name]))
    return [name for name in names if name in STS_TASKS], [name for name in names if name in TRANSFER_TASKS]


if __name__ == "__main__":
    sys.exit(main())
