"""Train a cross-encoder on STS-B: the BERT-STSb rows of SBERT (Reimers & Gurevych 2019, arXiv:1908.10084), Table 2.

    python -m eval.cross_encoder bert-base-uncased --data SENTEVAL --text raw -o models/bert-stsb-1 --seed 1
    simcse-eval cross-encoder:models/bert-stsb-1 --tasks STSB --text raw --data SENTEVAL

The defaults are the paper's: 4 epochs, batches of 16, Adam with learning rate 2e-5, warm-up over the first tenth of
the steps and linear decay, the best of the epochs by Spearman correlation on STS-B dev; the paper averages 10 seeds
(BERT-base 84.30 +- 0.76, BERT-large 85.64 +- 0.81) and used raw text. As in the authors' code the target is score / 5
under binary cross-entropy, and AdamW's weight decay is 0.01. With several GPUs visible the batch is one of each: show
it one (``CUDA_VISIBLE_DEVICES=0``).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eval.peer_runs import scored_columns, write_record
from simcse_kit.cli.common import command_app, run

if TYPE_CHECKING:
    from simcse_kit.data.sts import StsTask

_WARMUP = 0.1  # of all steps
_WEIGHT_DECAY = 0.01

app = command_app()


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="The encoder to start from: a directory or a hub id.", metavar="MODEL")],
    data: Annotated[Path, typer.Option(help="A folder in SentEval's layout, for STS-B train and dev.", metavar="DIR")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model: a directory, new or empty.", metavar="DIR")
    ],
    text: Annotated[Literal["disk", "raw"], typer.Option(help="STS-B as SentEval tokenises it, or raw.")] = "disk",
    epochs: Annotated[int, typer.Option(min=1, metavar="N")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N")] = 16,
    lr: Annotated[float, typer.Option(help="The highest learning rate.", metavar="RATE")] = 2e-5,
    seed: Annotated[int, typer.Option(help="Of the classifier's weights, the order of the pairs, dropout.")] = 42,
) -> None:
    """Train a cross-encoder on STS-B train and keep the best by STS-B dev."""
    from simcse_kit.data.sts import load_sts_task
    from simcse_kit.locate import locate
    from simcse_kit.output import check_new_directory, new_directory

    check_new_directory(output)
    train_task, dev_task = (load_sts_task("STSB", [data], split=split, text=text) for split in ("train", "dev"))
    directory = locate(model)

    import transformers

    from simcse_kit.backbone import quiet

    transformers.set_seed(seed)  # before the classifier's weights are drawn
    with quiet():
        from sentence_transformers import CrossEncoder

        cross_encoder = CrossEncoder(str(directory), num_labels=1, local_files_only=True)
    with new_directory(output) as temporary:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".cross-encoder-") as checkpoints:
            trainer = _trainer(
                cross_encoder, train_task, dev_task, checkpoints, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
            )
            trainer.train()
        best = {"task": "STSB", "split": "dev", "spearman": 100 * trainer.state.best_metric}
        cross_encoder.save_pretrained(str(temporary), create_model_card=False)
        write_record(temporary, train_task, best | {"step": trainer.state.best_global_step}, seed=seed)
    print(f"{output}: STS-B dev {best['spearman']:.2f} (Spearman x100), the best of {epochs} epochs")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(app, args)


def _trainer(
    model: Any, train: StsTask, dev: StsTask, output: str, *, epochs: int, batch_size: int, lr: float, seed: int
) -> Any:
    """The trainer of sentence-transformers, evaluating once an epoch and ending with the best model in `model`."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    columns, development = scored_columns(train), scored_columns(dev)
    pairs = [list(pair) for pair in zip(development["sentence1"], development["sentence2"], strict=True)]
    arguments = CrossEncoderTrainingArguments(
        output_dir=output,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        warmup_steps=_WARMUP,
        weight_decay=_WEIGHT_DECAY,
        eval_strategy="epoch",
        save_strategy="best",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_spearman",
        greater_is_better=True,
        seed=seed,
        report_to="none",
    )
    return CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=BinaryCrossEntropyLoss(model),
        evaluator=CrossEncoderCorrelationEvaluator(pairs, development["label"], name="dev", write_csv=False),
    )


if __name__ == "__main__":
    sys.exit(main())
