"""Fixtures of the training tests: small training files, and recipes over them for a tiny random BERT."""

import csv
import json
import random

import pytest

from simcse_kit.train.loop import prepare, train
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import RunDirectory

# Words that the tokenizers of the tiny checkpoints know.
WORDS = ["man", "guitar", "street", "children", "red", "ball", "cat", "door", "garden", "letter", "dog", "boats"]


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


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


def run_recipe(recipe, *, resume=False, overwrite=False):
    run = RunDirectory(recipe.output_dir)
    run.check(recipe, resume=resume, overwrite=overwrite)
    return train(prepare(recipe), run, resume=resume, overwrite=overwrite, quiet=True)


@pytest.fixture
def run():
    """Train a recipe as the command does: ``run(recipe, resume=False, overwrite=False) -> Outcome``."""
    return run_recipe


@pytest.fixture
def lines():
    """The lines of a run's metrics.jsonl of one kind: ``lines(recipe, kind)``."""

    def read(recipe, kind="train"):
        path = RunDirectory(recipe.output_dir).path / "metrics.jsonl"
        return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]

    return read
