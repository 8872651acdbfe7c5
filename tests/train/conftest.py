"""Fixtures of the training tests: small training files, and recipes over them for a tiny random BERT."""

import json
import multiprocessing
import random

import pytest
from small_files import WORDS, write_csv

from simcse_kit.train.loop import train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import RunDirectory

# What a run imports only once it is under way.
_IMPORTED_LATE = ["scipy.stats", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with ``triplets.csv`` (a, p, n; 22 rows of different lengths), ``texts.txt`` and ``sts.csv``."""
    draw, folder = random.Random(3), tmp_path_factory.mktemp("files")

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    write_csv(folder / "triplets.csv", ["a", "p", "n"], [[text() for _ in range(3)] for _ in range(22)])
    (folder / "texts.txt").write_text("".join(f"{text()}\n" for _ in range(22)))
    pairs = [[text(), text(), round(draw.uniform(0, 5), 2)] for _ in range(20)]
    write_csv(folder / "sts.csv", ["sentence1", "sentence2", "score"], pairs)
    return folder


@pytest.fixture
def recipe(files, tiny_checkpoint, tmp_path):
    """Factory of recipes: dotted keys (``train__lr=1``, for want of dots) over a run of 6 steps on triplets."""

    def make(**changes):
        content = {
            "model": {"name": str(tiny_checkpoint("bert")), "pooling": "mean", "head": "none"},
            "data": {"train": str(files / "triplets.csv"), "columns": ["a", "p", "n"]},
            "train": {"batch_size": 8, "epochs": 2, "lr": 1e-3},
            "evaluation": {"data": str(files / "sts.csv"), "every": 2},
            "output_dir": str(tmp_path / "run"),
        }
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = content
            for key in parents:
                place = place.setdefault(key, {})
            place[last] = value
        return Recipe.model_validate(content)

    return make


@pytest.fixture
def run():
    """Train a recipe as the command does: ``run(recipe, resume=False) -> Outcome``."""

    def run_recipe(recipe, *, resume=False):
        directory = RunDirectory(recipe.output_dir)
        directory.check(recipe, resume=resume, overwrite=False)
        return train(prepare(recipe), directory, resume=resume, quiet=True)

    return run_recipe


@pytest.fixture
def lines():
    """The lines of a run's metrics.jsonl of one kind: ``lines(recipe, kind)``."""

    def read(recipe, kind="train"):
        path = RunDirectory(recipe.output_dir).path / "metrics.jsonl"
        return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]

    return read


@pytest.fixture(scope="session")
def start():
    """Start a function of a test module in a process of its own: ``start(target, *arguments) -> Process``.

    The processes are forked from a server that has imported the package and computed nothing, so each is there at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simcse_kit.cli.train", "simcse_kit.train.loop", *_IMPORTED_LATE])

    def begin(target, *arguments):
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    return begin
