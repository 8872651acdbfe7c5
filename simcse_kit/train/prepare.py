"""Everything a run needs, opened and checked before anything is written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from simcse_kit.data.sts import StsTask
from simcse_kit.dtypes import NO_INSTRUCTIONS, has_instructions
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError
from simcse_kit.objectives.masked_lm import MaskedLM
from simcse_kit.tokenization import template_tokens
from simcse_kit.train.batches import Schedule
from simcse_kit.train.held_out import HeldOut
from simcse_kit.train.new_model import new_encoder
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.report import open_task
from simcse_kit.train.rows import Rows, check_labels, check_vocabulary, open_rows
from simcse_kit.train.views import Views
from simcse_kit.train.weighted import WeightedObjectives

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, opened and checked, before anything is written; `encoder` is what it leaves behind."""

    recipe: Recipe
    accelerator: Accelerator
    encoder: SentenceEncoder
    second: SentenceEncoder | None
    masked_lm: MaskedLM | None
    objective: WeightedObjectives
    views: Views
    rows: Rows
    schedule: Schedule
    task: StsTask | None
    held_out: HeldOut | None


def prepare(recipe: Recipe) -> Prepared:
    """Open the model and read all data of a recipe.

    Raises:
        UserError: If any of it is not as it should be.
    """
    rows, held_out = open_rows(recipe), HeldOut.of(recipe)
    check_labels(rows, recipe.pooled)
    schedule = Schedule.of(len(rows), recipe.train, shuffle=recipe.data.shuffle, seed=recipe.seed)
    task = open_task(recipe.evaluation)
    accelerator = open_accelerator(recipe)
    views = Views(recipe)  # a language model among them goes to this process's device
    encoder = open_encoder(recipe, accelerator.device)
    check_vocabulary(recipe, encoder.tokenizer)
    second = open_encoder(recipe, accelerator.device) if recipe.train.encoders == 2 else None
    masked_lm = open_masked_lm(recipe, encoder)
    objective = WeightedObjectives(recipe, width=encoder.dimension).to(accelerator.device)
    return Prepared(recipe, accelerator, encoder, second, masked_lm, objective, views, rows, schedule, task, held_out)


def open_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run, at the recipe's precision, or in fp32 where ``lacks_instructions``.

    Raises:
        UserError: If there is no device for this precision.
    """
    # It would remember the precision of an earlier run in this interpreter, and refuse another one.
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    if lacks_instructions(precision):
        warnings.warn(f"train.precision: {precision} is fp32 here, many times as fast: {NO_INSTRUCTIONS}", stacklevel=3)
        precision = "fp32"
    try:
        # Left to itself without a GPU, it makes of several launched processes as many runs on their own.
        accelerator = Accelerator(mixed_precision=_PRECISIONS[precision], cpu=not torch.accelerator.is_available())
    except ValueError as error:
        raise UserError(f"train.precision: {precision} is not to be had here ({error})") from None
    if precision == "fp16" and accelerator.scaler is None:  # it would train in fp32 without a word
        raise UserError(f"train.precision: fp16 needs a GPU, and this is {accelerator.device.type}; use bf16 or fp32")
    return accelerator


def lacks_instructions(precision: str) -> bool:
    """Whether training in a precision would be on a CPU that has no instructions for it; it is in fp32 then."""
    on_cpu = not torch.accelerator.is_available()
    return precision == "bf16" and on_cpu and not has_instructions(torch.bfloat16, torch.device("cpu"))


def open_encoder(recipe: Recipe, device: torch.device | None = None) -> SentenceEncoder:
    """The untrained encoder of a recipe, with its head.

    Raises:
        UserError: If the model cannot be opened as the recipe says.
    """
    model = recipe.model
    if model.new is not None:
        encoder = new_encoder(model, model.new, seed=recipe.seed, device=device)
    else:
        encoder = SentenceEncoder.from_pretrained(
            model.name,
            pooling=model.pooling,
            device=device,
            dropout=model.dropout,
            revision=model.revision,
            allow_pickle=model.allow_pickle,
            trust_remote_code=model.trust_remote_code,
            template=model.template,
        )
    encoder.check_max_length(model.max_length)
    for view in recipe.views:
        if view.template:
            _check_template(encoder, view.template, model.max_length)
    if model.head == "mlp":
        torch.manual_seed(recipe.seed)
        encoder.add_head(keep=model.keep_head)
    return encoder


def _check_template(encoder: SentenceEncoder, template: str, max_length: int) -> None:
    """Refuse a view's template that leaves no room for a word."""
    fewest = sum(map(len, template_tokens(encoder.tokenizer, template))) + 1
    if max_length < fewest:
        raise UserError(f"views: template {template!r} alone takes model.max_length {max_length}; it needs {fewest}")


def open_masked_lm(recipe: Recipe, encoder: SentenceEncoder) -> MaskedLM | None:
    """What predicts masked tokens, if a recipe has that objective; a new head is drawn by its seed.

    Raises:
        UserError: If the encoder's family has no such head, or its tokenizer no mask token; or something is to be
            compiled for rows that are not of one length.
    """
    tokens, settings = recipe.data.tokens is not None, recipe.masked_lm
    if recipe.train.compile and not tokens:
        raise UserError("train.compile: rows must be of one length, as those of simcse-prepare are; set it to false")
    if settings is None:
        return None
    torch.manual_seed(recipe.seed)
    return MaskedLM(
        encoder,
        rate=settings.rate,
        whole_word=settings.whole_word,
        full_rows=tokens,
        compiled=recipe.train.compile and encoder.device.type == "cuda",
    )
