"""Our siamese recipe beside CoSENT of sentence-transformers: the same pairs, backbone and budget, seed by seed.

    python -m eval.peer_cosent --data SENTEVAL -o runs/peer-cosent

Both train on STS-B train as released, from all-MiniLM-L6-v2, and keep the best by STS-B dev. Epochs, batch size,
learning rate, warm-up, weight decay, precision and steps between evaluations are the recipe's for both. Ours and the
peer's model of each seed are trained by turns; one that is there is not trained again, so that an interrupted run goes
on where it was. The figures come from simcse-eval:

    simcse-eval runs/peer-cosent/ours-* --as-seeds --tasks STSB --text raw --json ours.json
    simcse-eval runs/peer-cosent/peer-* --as-seeds --tasks STSB --text raw --json peer.json
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.ablations.options import parse_seeds
from eval.peer_runs import scored_columns, write_record
from simcse_kit.cli.common import command_app, run

if TYPE_CHECKING:
    from simcse_kit.data.sts import StsTask
    from simcse_kit.train.recipe import Recipe

_RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "cosent-stsb-minilm.yaml"

app = command_app()


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="A folder in SentEval's layout, with raw STS-B.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the models go.", metavar="DIR")],
    recipe: Annotated[Path, typer.Option(help="Our recipe.", metavar="RECIPE.yaml")] = _RECIPE,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    keys: Annotated[list[str] | None, typer.Option("--set", help="A recipe key for both: key.path=value.")] = None,
) -> None:
    """Train both models of every seed."""
    from simcse_kit.data.sts import load_sts_task
    from simcse_kit.train.recipe_file import load_recipe

    train_task, dev_task = (load_sts_task("STSB", [data], split=split, text="raw") for split in ("train", "dev"))
    for seed in parse_seeds(seeds):
        files = {
            "data.train": data / "raw/STSBenchmark/sts-train.csv",
            "evaluation.data": data / "raw/STSBenchmark/sts-dev.csv",
            "output_dir": output / f"ours-{seed}",
            "seed": seed,
        }
        ours = load_recipe(recipe, [*(keys or []), *(f"{key}={value}" for key, value in files.items())])
        _train_ours(ours)
        _train_peer(ours, train_task, dev_task, output / f"peer-{seed}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def _train_ours(recipe: Recipe) -> None:
    from eval.ablations.runs import train_run

    if not train_run(recipe):
        raise KeyboardInterrupt


def _train_peer(recipe: Recipe, train: StsTask, dev: StsTask, output: Path) -> None:
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    from simcse_kit.backbone import quiet
    from simcse_kit.locate import locate
    from simcse_kit.output import new_directory

    if (output / "run.json").is_file():
        return
    with quiet():
        model = SentenceTransformer(str(locate(recipe.model.name)), local_files_only=True)
    settings = recipe.train
    development = scored_columns(dev)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".peer-") as checkpoints:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=checkpoints,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.lr,
                warmup_steps=settings.warmup_ratio,
                weight_decay=settings.weight_decay,
                bf16=settings.precision == "bf16",
                use_cpu=not torch.accelerator.is_available(),  # else it would not take bf16 there
                eval_strategy="steps",
                eval_steps=recipe.evaluation.every,
                save_strategy="best",
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="eval_dev_spearman_cosine",
                greater_is_better=True,
                seed=recipe.seed,
                report_to="none",
            ),
            train_dataset=Dataset.from_dict(scored_columns(train)),
            loss=CoSENTLoss(model),
            evaluator=EmbeddingSimilarityEvaluator(
                development["sentence1"], development["sentence2"], development["label"], name="dev", write_csv=False
            ),
        )
        trainer.train()
    best = {"step": trainer.state.best_global_step, "task": "STSB", "split": "dev"}
    with new_directory(output) as temporary:
        model.save_pretrained(str(temporary), create_model_card=False)
        write_record(
            temporary, train, best | {"spearman": 100 * float(trainer.state.best_metric or 0.0)}, seed=recipe.seed
        )


if __name__ == "__main__":
    sys.exit(main())
