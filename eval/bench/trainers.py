"""The systems that train unsupervised SimCSE, ours and the peers', behind one protocol.

All train the same model on the same batches: pooling cls, a head of one linear layer and tanh that is drawn from the
seed, two views of each text that differ by dropout, cosines over a temperature of 0.05, cross-entropy from the first
view to the second, AdamW without decay at one learning rate, gradients clipped to 1.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from simcse_kit.backbone import open_backbone, parse_device, quiet
from simcse_kit.dtypes import has_instructions
from simcse_kit.locate import locate
from simcse_kit.modules import Dense
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train.gradients import Gradients
from simcse_kit.train.heap import kept_memory
from simcse_kit.train.optim import adamw, clip_gradients
from simcse_kit.train.prepare import prepare
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.views import MergedForward

Precision = Literal["fp32", "bf16", "fp16"]
TEMPERATURE = 0.05
_MAX_GRAD_NORM = 1.0
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """What all systems train on one seed.

    Attributes:
        model: A name or path.
        texts: In the order of the steps.
        batch_size: Texts a step.
        max_length: Tokens a text is cut to.
        lr: The learning rate.
        dropout: Rate of every dropout; None: the model's own.
        seed: Of the head and the dropout masks.
    """

    model: str
    texts: list[str]
    batch_size: int
    max_length: int
    lr: float
    dropout: float | None
    seed: int

    def batch(self, step: int) -> list[str]:
        """The texts of a step, counted from 0."""
        return self.texts[step * self.batch_size : (step + 1) * self.batch_size]

    def head(self, width: int) -> Dense:
        """The head that training begins with, as ``simcse_kit`` draws it."""
        torch.manual_seed(self.seed)
        return Dense.head(width)


class Block(NamedTuple):
    """Steps that were made: the seconds of all, the loss of each."""

    seconds: float
    losses: list[float]


class Trainer(Protocol):
    """What trains."""

    def run(self, first: int, steps: int) -> Block:
        """Make some steps, the first of them being this one, counted from 0; those before have been made."""


class Ours:
    """The steps of ``simcse_kit.train.loop``, of any recipe, without its evaluations and files."""

    def __init__(self, recipe: Recipe) -> None:
        """Open what a run of the recipe opens.

        Raises:
            UserError: As ``prepare``.
        """
        prepared = prepare(recipe)
        forward = MergedForward(recipe, prepared.encoder, prepared.views, prepared.objective)
        self._trained = nn.ModuleList([prepared.encoder, prepared.objective])
        optimizer = adamw(self._trained, lr=recipe.train.lr, weight_decay=recipe.train.weight_decay)
        model, self._optimizer = prepared.accelerator.prepare(forward, optimizer)
        self._gradients, self._prepared = Gradients(prepared, model, recipe.train.chunk_size), prepared
        self._tokenizer = TemplateTokenizer(prepared.encoder.tokenizer)

    @classmethod
    def of_work(cls, work: Work, precision: Precision = "fp32") -> Ours:
        """Open the recipe of some work."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "texts.txt"
            file.write_text("\n".join(work.texts), encoding="utf-8")
            recipe = {
                "model": {"name": work.model, "max_length": work.max_length, "dropout": work.dropout},
                "data": {"train": str(file), "shuffle": False},
                "objectives": [{"temperature": TEMPERATURE}],
                "train": {"batch_size": work.batch_size, "lr": work.lr, "precision": precision},
                "seed": work.seed,
                "output_dir": folder,
            }
            return cls(Recipe.model_validate(recipe))

    def run(self, first: int, steps: int) -> Block:
        """Make some steps."""
        size, rows = self._prepared.recipe.train.batch_size, len(self._prepared.rows)
        accelerator, losses = self._prepared.accelerator, []
        started = time.perf_counter()
        with kept_memory(accelerator.device, self._prepared.recipe.train.chunk_size):
            for step in range(first, first + steps):
                chosen = [row % rows for row in range(step * size, (step + 1) * size)]
                draws = torch.Generator().manual_seed(step)
                batch = self._prepared.views.collate(self._tokenizer, self._prepared.rows, chosen, draws)
                losses.append(self._gradients.compute(batch, step + 1).value)
                # Not by the accelerator, which asks for the precision of whichever system was opened last.
                if accelerator.scaler is not None:
                    accelerator.scaler.unscale_(self._optimizer.optimizer)
                clip_gradients(self._trained.parameters(), _MAX_GRAD_NORM)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return _finished(started, losses)


class Reference:
    """The loop of SimCSE's authors: a padded batch [N, 2, T] through transformers' own forward, under autocast.

    As there, texts are tokenised before training and both views of a text stand side by side.
    """

    def __init__(self, work: Work, precision: Precision = "fp32") -> None:
        opened = open_backbone(
            locate(work.model), dropout=work.dropout, dtype=torch.float32, allow_pickle=False, trust_remote_code=False
        )
        self._device, self._tokenizer, self._work = parse_device(None), opened.tokenizer, work
        self._backbone = opened.model.train()
        self._backbone.to(self._device)
        self._head = work.head(self._backbone.config.hidden_size).to(self._device)
        self._parameters = [*self._backbone.parameters(), *self._head.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=work.lr, weight_decay=0.0)
        self._half = _HALF.get(precision)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        self._tokens: list[list[int]] = opened.tokenizer(work.texts, truncation=True, max_length=work.max_length)[
            "input_ids"
        ]

    def run(self, first: int, steps: int) -> Block:
        """Make some steps."""
        size = self._work.batch_size
        started, losses = time.perf_counter(), []
        for step in range(first, first + steps):
            tokens = self._tokens[step * size : (step + 1) * size]
            twice = [{"input_ids": ids} for ids in tokens for _ in range(2)]
            padded = self._tokenizer.pad(twice, return_tensors="pt").to(self._device)
            loss = self._loss(padded["input_ids"], padded["attention_mask"])
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad()
            losses.append(loss.detach())
        return _finished(started, losses)

    def _loss(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Of a batch of 2 N rows [2 N, T], both views of a text side by side."""
        with torch.autocast(self._device.type, dtype=self._half, enabled=self._half is not None):
            states = self._backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            vectors = self._head(states[:, 0])
        views = vectors.float().unflatten(0, (-1, 2))  # [N, 2, D]
        cosines = nn.functional.cosine_similarity(views[:, 0].unsqueeze(1), views[:, 1].unsqueeze(0), dim=-1)
        return nn.functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(views), device=cosines.device))


class SentenceTransformersTrainer:
    """``SentenceTransformerTrainer`` and ``MultipleNegativesRankingLoss`` on pairs of a text with itself.

    The trainer cannot pause, so each block of steps is a training of its own, of the same model and with the state of
    the same optimiser. The clock runs from the trainer's word that training begins to that it ends, and so not while
    the trainer is set up.
    """

    def __init__(self, work: Work) -> None:
        from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
        from sentence_transformers.base.modules import Dense as Layer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import Pooling

        with quiet():
            transformer = Transformer(str(locate(work.model)), max_seq_length=work.max_length)
        for module in transformer.modules():
            if isinstance(module, nn.Dropout) and work.dropout is not None:
                module.p = work.dropout
        width = transformer.get_embedding_dimension()
        layer = Layer(width, width, activation_function=nn.Tanh())
        layer.linear.load_state_dict(work.head(width).linear.state_dict())
        modules = [transformer, Pooling(width, "cls"), layer]
        card = SentenceTransformerModelCardData(generate_widget_examples=False)
        self._model = SentenceTransformer(modules=modules, device=str(parse_device(None)), model_card_data=card)
        self._loss = MultipleNegativesRankingLoss(self._model, scale=1 / TEMPERATURE)
        # The trainer's own choice, made here so that its state outlives a block.
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=work.lr, weight_decay=0.0, fused=True)
        self._work = work

    def run(self, first: int, steps: int) -> Block:
        """Make some steps."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.base.sampler import DefaultBatchSampler

        texts = [text for step in range(first, first + steps) for text in self._work.batch(step)]
        clock, losses = _Clock(), []
        handle = self._loss.register_forward_hook(lambda module, inputs, loss: losses.append(loss.detach()))
        # It would remember the precision of another system's, and refuse its own.
        AcceleratorState._reset_state()
        with tempfile.TemporaryDirectory() as folder:
            trainer = SentenceTransformerTrainer(
                model=self._model,
                args=SentenceTransformerTrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=self._work.batch_size,
                    max_steps=steps,
                    batch_sampler=lambda rows, **options: DefaultBatchSampler(SequentialSampler(rows), **options),
                    seed=self._work.seed * 1_009 + first,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_dict({"anchor": texts, "positive": texts}),
                loss=self._loss,
                optimizers=(self._optimizer, LambdaLR(self._optimizer, lambda step: 1.0)),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        handle.remove()
        return Block(clock.seconds, [loss.item() for loss in losses])


class _Clock(TrainerCallback):
    """Measures a training from its beginning to its end."""

    def __init__(self) -> None:
        self._started = self.seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self._started


@dataclass(frozen=True)
class Kind:
    """How a system is opened, and the type of its matrix products, by torch's name."""

    open: Callable[[Work], Trainer]
    dtype: str = "float32"

    def missing(self, device: torch.device) -> str | None:
        """Why this machine cannot run it, if it cannot."""
        if self.dtype == "float16" and device.type != "cuda":
            return "fp16 needs a GPU"
        slow = not has_instructions(getattr(torch, self.dtype), device)
        return f"needs a processor with instructions for {self.dtype}" if slow else None


TRAINERS: Mapping[str, Kind] = {
    "reference": Kind(Reference),
    "ours": Kind(Ours.of_work),
    "sentence-transformers": Kind(SentenceTransformersTrainer),
    "reference-bf16": Kind(partial(Reference, precision="bf16"), "bfloat16"),
    "ours-bf16": Kind(partial(Ours.of_work, precision="bf16"), "bfloat16"),
    "reference-fp16": Kind(partial(Reference, precision="fp16"), "float16"),
    "ours-fp16": Kind(partial(Ours.of_work, precision="fp16"), "float16"),
}
"""All systems by name."""


def _finished(started: float, losses: list[Tensor]) -> Block:
    """The block that began at a time, once a GPU has done its work too."""
    values = [loss.item() for loss in losses]
    return Block(time.perf_counter() - started, values)
