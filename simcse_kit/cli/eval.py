"""`simcse-eval`: measure models on STS tasks; a table for people, a result file for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simcse_kit.cli.common import (
    DeviceOption,
    DtypeOption,
    MaxLengthOption,
    PoolingOption,
    command_app,
    open_encoder,
    output_console,
    run,
)
from simcse_kit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simcse_kit.data.sts import StsTask
    from simcse_kit.encoder import SentenceEncoder

_TRANSFER_TASKS = ("transfer", "all", "MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
_TASKS_WITH_DEV = ("STSB", "SICKR")
_TASKS_WITH_RAW = ("STSB",)

app = command_app()


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Directories, packaged models' names or hub ids.", metavar="MODEL")
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="sts (all seven; the default unless --data names files only), or some, as in STSB,STS12.",
            metavar="sts|NAMES",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder in SentEval's layout (by default the one cached or fetched from the hub), or a csv, tsv, "
            "jsonl or parquet file of your own with columns sentence1, sentence2, score, which is a task named after "
            "it. Repeatable.",
            metavar="PATH",
        ),
    ] = None,
    split: Annotated[Literal["test", "dev"], typer.Option(help="STS-B and SICK-R have a dev split.")] = "test",
    aggregation: Annotated[
        Literal["all", "mean", "wmean"],
        typer.Option(
            help="How STS12-16 combine their subsets: one correlation over all pairs, as in the papers, or the mean "
            "of the subsets' correlations, plain or weighted by pairs."
        ),
    ] = "all",
    metric: Annotated[Literal["spearman", "pearson"], typer.Option(help="The correlation.")] = "spearman",
    text: Annotated[Literal["disk", "raw"], typer.Option(help="STS-B as SentEval tokenises it, or raw.")] = "disk",
    pooling: PoolingOption = None,
    max_length: MaxLengthOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the result file here, replacing one that is there.", metavar="FILE")
    ] = None,
) -> None:
    """Measure sentence encoders on semantic textual similarity, by the protocol of the papers."""
    from simcse_kit.evaluate.results import describe_model, result_file, write_results
    from simcse_kit.evaluate.sts import score_tasks
    from simcse_kit.evaluate.table import results_table
    from simcse_kit.locate import locate
    from simcse_kit.output import check_output

    if json is not None:
        check_output(json)
    loaded = _load_tasks(tasks, data or [], split, text)
    for model in models:
        locate(model)
    entries, scores = [], {}
    for i, model in enumerate(models):
        encoder = open_encoder(model, pooling=pooling, max_length=max_length, device=device, dtype=dtype)
        entries.append(describe_model(f"m{i}", encoder))
        scores[f"m{i}"] = score_tasks(_ShowingProgress(encoder), loaded, metric=metric, aggregation=aggregation)
    results = result_file(entries, scores)
    if json is not None:
        write_results(json, results)
    output_console().print(results_table(results))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


@dataclass(frozen=True)
class _ShowingProgress:
    encoder: SentenceEncoder

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        return self.encoder.encode(sentences, show_progress=sys.stderr.isatty())


def _load_tasks(tasks: str | None, data: Sequence[Path], split: str, text: str) -> list[StsTask]:
    """Load the tasks asked for, and each file in `data` as a task of its own."""
    from simcse_kit.data.senteval import senteval_folder
    from simcse_kit.data.sts import load_sts_file, load_sts_task

    for path in data:
        if not path.exists():
            raise UserError(f"--data {path}: there is no such folder or file")
    folders = [path for path in data if path.is_dir()]
    files = [path for path in data if not path.is_dir()]
    only_files = tasks is None and files and not folders
    names = [] if only_files else _task_names("sts" if tasks is None else tasks)
    if split == "dev" and not set(names).issubset(_TASKS_WITH_DEV):
        raise UserError("--split dev: only STSB and SICKR have a dev split; ask for --tasks STSB,SICKR")
    if text == "raw" and not set(names).issubset(_TASKS_WITH_RAW):
        raise UserError("--text raw: only STSB is there in raw text; ask for --tasks STSB")
    if names and not folders:
        folders = [senteval_folder()]
    loaded = [load_sts_task(name, folders, split=split, text=text) for name in names]
    loaded += [load_sts_file(path, name=_name_of(path), split=split) for path in files]
    names = [task.name for task in loaded]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--data: two tasks would be named {name!r}; rename the file")
    return loaded


def _name_of(path: Path) -> str:
    """The task name of a file: its own, without the suffixes of format and compression."""
    return Path(path.name.removesuffix(".gz")).stem


def _task_names(tasks: str) -> list[str]:
    """Resolve `--tasks`: names in any case, with or without a hyphen, each once and in the order given."""
    from simcse_kit.data.sts import STS_TASKS, sts_task_name

    names: list[str] = []
    for item in (item.strip() for item in tasks.split(",")):
        if item.lower() == "sts":
            names += STS_TASKS
        elif item.lower() in (name.lower() for name in _TRANSFER_TASKS):
            raise UserError(f"--tasks {item}: this version measures STS tasks only: sts, or {', '.join(STS_TASKS)}")
        else:
            names.append(sts_task_name(item.replace("-", "")))
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
