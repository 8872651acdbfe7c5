"""``--check``: what a recipe would do, found out without training."""

from __future__ import annotations

from functools import partial

import torch

from simcse_kit.data.senteval import local_senteval_folders
from simcse_kit.data.sts import senteval_is_here
from simcse_kit.data.sts_texts import STS_TEXTS
from simcse_kit.dtypes import NO_INSTRUCTIONS
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.locate import find_local
from simcse_kit.train.batches import Schedule
from simcse_kit.train.held_out import HeldOut
from simcse_kit.train.prepare import lacks_instructions, open_encoder, open_masked_lm
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.report import open_task
from simcse_kit.train.rows import Rows, check_labels, check_vocabulary, open_rows
from simcse_kit.train.rundir import RunDirectory
from simcse_kit.train.sections import EvaluationSection, ModelSection, ReportSection, ViewSection
from simcse_kit.train.views import Views

_SAMPLE = 1_000
# Weights, gradients and the two moments of AdamW, float32 each.
_BYTES_PER_PARAMETER = 16


def describe(recipe: Recipe, *, start: ModelSection | None = None) -> list[str]:
    """Read and open everything that is on this machine, and say what would run, a line each.

    What lies on the hub is not fetched; its line says so.

    Args:
        recipe: The run.
        start: For a later stage, the first one's model: its own is the best of the stage before, and not there yet.

    Raises:
        UserError: If anything is not as it should be.
    """
    run = RunDirectory(recipe.output_dir)
    taken = run.read_run() is not None
    if not taken:
        run.check(recipe, resume=False, overwrite=False)
    rows = None if _on_hub(recipe.data.train) else open_rows(recipe)
    if rows is not None:
        check_labels(rows, recipe.pooled)
    if all(_can_open(view) for view in recipe.views):
        Views(recipe)
    model = recipe.model.model_copy(update={"name": start.name, "new": start.new} if start else {})
    encoder = open_encoder(recipe.model_copy(update={"model": model})) if _is_here(model) else None
    if encoder is not None:
        check_vocabulary(recipe, encoder.tokenizer)
        open_masked_lm(recipe, encoder)
    often = f"every {recipe.evaluation.every} steps and " if recipe.evaluation.every else ""
    lines = {
        "data": _describe_rows(recipe, rows),
        "model": _describe_model(recipe, encoder) if start is None else "the best of the stage before",
        "evaluation": _describe_set(recipe.evaluation, f"{often}at the end; the best model is kept"),
        **_describe_held_out(HeldOut.of(recipe), f"{often}at the end"),
        "report": _describe_set(recipe.report, "before and after") if recipe.report else "none",
        "steps": _describe_steps(recipe, rows),
        "cost": _describe_cost(recipe, rows, encoder) if rows and encoder else "not known",
        "output": recipe.output_dir + (" (holds a run: --resume or --overwrite it)" if taken else ""),
    }
    return [f"{name:12}{line}" for name, line in lines.items()]


def _can_open(view: ViewSection) -> bool:
    """Whether a view's augmentation needs no model that would have to be fetched."""
    return not (view.text and view.text.name == "masked_lm") or find_local(view.text.model or "") is not None


def _on_hub(source: str | list[str]) -> bool:
    """Whether reading a source fetches something from the hub."""
    names = [source] if isinstance(source, str) else source
    of_senteval = any(name in ("senteval", STS_TEXTS) for name in names)
    return any(name.startswith(("hf://", "hub:")) for name in names) or (of_senteval and not local_senteval_folders())


def _is_here(model: ModelSection) -> bool:
    """Whether a model is on this machine; one that is not, and cannot be on the hub, is opened to be refused."""
    local = find_local(model.name, revision=model.revision, allow_pickle=model.allow_pickle)
    return local is not None or model.name.count("/") > 1


def _describe_held_out(held_out: HeldOut | None, when: str) -> dict[str, str]:
    return {} if held_out is None else {"held out": f"masked tokens of {len(held_out.rows):,} rows, {when}"}


def _describe_rows(recipe: Recipe, rows: Rows | None) -> str:
    if rows is None:
        return f"{recipe.data.train}: would be read from the hub; not checked"
    views = recipe.data.texts * len(recipe.views_per_text)
    return f"{len(rows):,} rows, {views} view{'s' * (views > 1)} each; {rows.summary}"


def _describe_model(recipe: Recipe, encoder: SentenceEncoder | None) -> str:
    name, head = recipe.model.name, recipe.model.head
    if encoder is None:
        return f"{name}: would be fetched from the hub; not checked"
    size = sum(parameter.numel() for parameter in encoder.parameters())
    name = f"new, tokenizer of {name}" if recipe.model.new else name
    kept = "" if head == "none" else " (kept)" if recipe.model.keep_head else " (for training only)"
    return f"{name}: {size / 1e6:.1f}M parameters, {encoder.pooling} pooling, head {head}{kept}"


def _describe_set(section: EvaluationSection | ReportSection, when: str) -> str:
    name = f"{section.task} {section.split} from {section.data}"
    if section.data is not None and (_on_hub(section.data) or _raw_is_on_hub(section)):
        return f"{name}: would be fetched from the hub; not checked"
    task = open_task(section)
    if task is None:
        return "none: the last model is kept"
    return f"{task.name} {task.split}, {sum(len(subset.scores) for subset in task.subsets):,} pairs, {when}"


def _raw_is_on_hub(section: EvaluationSection | ReportSection) -> bool:
    return section.data == "senteval" and not senteval_is_here(section.text)


def _describe_steps(recipe: Recipe, rows: Rows | None) -> str:
    train = recipe.train
    batch = f"batch {train.batch_size}, lr {train.lr:g} {train.schedule}, {train.precision}"
    if train.precision == "fp16" and not torch.accelerator.is_available():
        batch += " (needs a GPU, and there is none here)"
    if lacks_instructions(train.precision):
        batch += f" (fp32 here: {NO_INSTRUCTIONS})"
    if rows is None:
        return f"{train.max_steps:,} steps, {batch}" if train.max_steps else f"{train.epochs:g} epochs, {batch}"
    schedule = Schedule.of(len(rows), train, shuffle=recipe.data.shuffle, seed=recipe.seed)
    epochs = schedule.steps / schedule.steps_per_epoch
    return f"{schedule.steps:,} steps ({epochs:.3g} epochs of {schedule.steps_per_epoch:,}), {batch}"


def _describe_cost(recipe: Recipe, rows: Rows, encoder: SentenceEncoder) -> str:
    """Tokens and memory, from the lengths of the first rows."""
    length = recipe.model.max_length
    sample, tokenize = range(min(_SAMPLE, len(rows))), partial(encoder.tokenize, max_length=length)
    lengths = [len(ids) for text in range(recipe.data.texts) for ids in rows.token_ids(sample, text, tokenize)]
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    encoded = [view for view in recipe.views_per_text if view.dropout != "same"]
    views, batch = recipe.data.texts * len(encoded), min(recipe.train.batch_size, len(rows))
    tokens = mean * views * batch
    kept = min(recipe.train.chunk_size or batch, batch)
    config = encoder.backbone.config
    # What a transformer layer keeps for its backward pass (Korthikanti et al. 2022, arXiv:2205.05198, equation 2),
    # counted in half precision there and doubled for float32.
    width = 1 if recipe.train.precision != "fp32" else 2
    layer = longest * config.hidden_size * (34 + 5 * config.num_attention_heads * longest / config.hidden_size)
    activations = width * layer * config.num_hidden_layers * views * kept
    weights = (
        recipe.train.encoders * _BYTES_PER_PARAMETER * sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    )
    return (
        f"about {mean:.0f} tokens a text, {tokens:,.0f} a step; "
        f"memory about {(weights + activations) / 2**30:.1f} GiB (a guess, over all processes)"
    )
