"""Every recipe, ten steps on a tiny random backbone: all that can learn does, and the losses are the recorded ones.

``UPDATE_GOLDEN=1 pytest tests/train/test_golden.py -n 0`` records them anew; the difference is for a person to judge.
"""

import json
import os
import random
from pathlib import Path

import pytest
from small_files import WORDS, write_csv

from simcse_kit.data.preparation import prepare_tokens
from simcse_kit.train.loop import train
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.stages import merge, stage_recipes

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden_losses.json")
RECORDED = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
RUNS = [
    pytest.param(path.name, stage, id=f"{path.stem}-{stage}" if stages > 1 else path.stem)
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    for stages in [len(stage_recipes(load_recipe(path)))]
    for stage in range(stages)
]


def tokens_for(checkpoint, folder):
    """A small directory of tokens of a checkpoint's vocabulary."""
    draw = random.Random(5)
    documents = (" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) for _ in range(60))
    (folder / "documents.txt").write_text("\n\n".join(documents))
    prepare_tokens(
        [str(folder / "documents.txt")],
        folder / "tokens",
        vocabulary_size=100,
        tokenizer=str(checkpoint),
        held_out=0.1,
        quiet=True,
    )
    return str(folder / "tokens")


def data_for(recipe, folder, checkpoint):
    """A small file of the kind that the recipe reads."""
    draw = random.Random(5)
    if not recipe.pooled:
        return tokens_for(checkpoint, folder)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    path, data = folder / "train.csv", recipe.data
    if data.train == "scenes":
        return "scenes"
    if data.convert in ("next_sentence", "next_three_sentences"):
        path = folder / "train.txt"
        path.write_text("\n\n".join("\n".join(text() for _ in range(9)) for _ in range(8)))
    elif data.convert == "scored_pairs":
        write_csv(path, ["sentence1", "sentence2", "score"], [[text(), text(), i % 6] for i in range(60)])
    elif data.convert == "nli_pairs":
        write_csv(path, data.columns, [[text(), text(), i % 3] for i in range(60)])
    elif len(data.columns) == 1:
        path = folder / "train.txt"
        path.write_text("".join(f"{text()}\n" for _ in range(60)))
    else:
        write_csv(path, data.columns, [[text() for _ in data.columns] for _ in range(60)])
    return str(path)


@pytest.fixture
def small(tiny_checkpoint, tmp_path):
    """A recipe or stage on a tiny backbone and a few rows, with nothing else changed."""

    def make(name, stage):
        recipe = stage_recipes(load_recipe(ROOT / "recipes" / name))[stage]
        checkpoint = tiny_checkpoint("roberta" if "roberta" in name else "bert")
        changes = {
            "model": {"max_length": min(recipe.model.max_length, 96), "name": str(checkpoint)},
            "data": {"train": data_for(recipe, tmp_path, checkpoint)},
            "train": {"batch_size": 8, "max_steps": 10, "precision": "fp32", "patience": None, "log_every": 1},
            "evaluation": {"data": None},
            "report": None,
            "stages": [],
            "output_dir": str(tmp_path / "run"),
        }
        if recipe.model.new:
            changes["model"]["new"] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
        return Recipe.model_validate(merge(recipe.model_dump(), changes))

    return make


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_a_recipe_trains_everything_and_its_losses_are_the_recorded_ones(small, name, stage, request):
    recipe = small(name, stage)
    prepared = prepare(recipe)
    parts = (prepared.encoder, prepared.second, prepared.objective, prepared.masked_lm)
    modules = [module for module in parts if module is not None]
    parameters = {f"{i}.{key}": p for i, module in enumerate(modules) for key, p in module.named_parameters()}
    trainable = {key: parameter for key, parameter in parameters.items() if parameter.requires_grad}
    moved = set()
    for key, parameter in trainable.items():
        parameter.register_post_accumulate_grad_hook(lambda p, key=key: p.grad.any() and moved.add(key))
    train(prepared, RunDirectory(recipe.output_dir), quiet=True)
    assert moved == set(trainable)

    lines = map(json.loads, (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    key = request.node.callspec.id
    if os.environ.get("UPDATE_GOLDEN"):
        RECORDED[key] = losses
        GOLDEN.write_text(json.dumps(dict(sorted(RECORDED.items())), indent=1) + "\n")
    assert len(losses) == 10
    assert losses == pytest.approx(RECORDED[key], abs=1e-4)


def test_no_recorded_run_is_without_its_recipe():
    assert set(RECORDED) == {run.id for run in RUNS}
