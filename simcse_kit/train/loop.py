"""The training loop: one function that reads top to bottom.

Text rows -> batch -> views -> one forward -> pooled vectors -> {term: loss} -> step -> metrics -> evaluation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

from simcse_kit.data.overlap import read_fingerprints, write_fingerprints
from simcse_kit.data.sts import StsTask
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.progress import Pace, progress_display
from simcse_kit.train import distributed
from simcse_kit.train.gradients import Gradients
from simcse_kit.train.heap import kept_memory
from simcse_kit.train.interpolation import Interpolation
from simcse_kit.train.optim import adamw, clip_gradients, learning_rate
from simcse_kit.train.pipeline import batches_ahead
from simcse_kit.train.prepare import Prepared
from simcse_kit.train.provenance import run_record
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rundir import Checkpoint, Progress, RunDirectory, check_loss
from simcse_kit.train.signals import stop_signals
from simcse_kit.train.views import MergedForward

# A checkpoint every so many steps where the recipe leaves train.save_every open.
_SAVE_EVERY = 500


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        progress: Steps, best evaluation, seconds.
        encoder: The best model (in the main process; in the others, the last one).
        interrupted: Whether it was stopped by a signal; it can be resumed.
        stopped: Whether there was such a signal, be it that the run was complete by then.
    """

    progress: Progress
    encoder: SentenceEncoder
    interrupted: bool
    stopped: bool


def train(  # noqa: C901 - one function that reads top to bottom
    prepared: Prepared, run: RunDirectory, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> Outcome:
    """Train, evaluate and save as the recipe says.

    Args:
        prepared: From ``prepare``.
        run: The run directory, checked; nothing is written to it before the untrained encoder has been evaluated.
        resume: Go on from its last checkpoint (from the start, if there is none).
        overwrite: Remove the run that is there.
        quiet: Show no progress.

    Returns:
        How it ended; the directory then holds the best model, or the last one where nothing was evaluated.

    Raises:
        UserError: If the data is not that of the run to resume, or the loss is no longer a finite number.
    """
    recipe, accelerator, encoder, schedule = prepared.recipe, prepared.accelerator, prepared.encoder, prepared.schedule
    settings, task, device, main = recipe.train, prepared.task, accelerator.device, accelerator.is_main_process
    objective, views, masked_lm = prepared.objective, prepared.views, prepared.masked_lm
    # Beside other objectives it is a means, alone what a later run goes on with.
    head = None if masked_lm is None or recipe.pooled else masked_lm.head
    save = partial(run.save_model, encoder, dtype=settings.save_dtype, shard_mb=settings.shard_mb, token_head=head)
    parts = [encoder, objective, prepared.second, masked_lm]
    trained = nn.ModuleList([part for part in parts if part is not None])
    optimizer = adamw(
        trained,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        epsilon=settings.adam_epsilon,
        bias_correction=settings.bias_correction,
    )
    progress, resumed_from = Progress(), None
    interpolation = Interpolation(encoder, settings.trained_share)
    checkpoint = run.load_checkpoint() if resume else None
    if checkpoint is not None:
        trained.load_state_dict(checkpoint.model, strict=False)  # tied tensors are there once
        optimizer.load_state_dict(checkpoint.optimizer)
        progress, resumed_from = checkpoint.progress, checkpoint.progress.step
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.scaler)
    record = run_record(prepared, resumed_from=resumed_from)
    if resume:
        run.check_same_data(record["data"])
    forward = MergedForward(recipe, encoder, views, objective, second=prepared.second, masked_lm=masked_lm)
    model, optimizer = accelerator.prepare(forward, optimizer)
    gradients = Gradients(prepared, model, progress.chunk_size or settings.chunk_size)
    started = time.perf_counter() - progress.seconds
    if task is not None and progress.step == 0:
        progress.before = _evaluate(encoder, task, step=0)
    if main:
        seen = prepared.rows.fingerprints()
        before = read_fingerprints(Path(encoder.source).expanduser()) if recipe.model.new is None else None
        run.start(recipe, overwrite=overwrite)
        run.write_run(record, progress, status="running")
        write_fingerprints(run.path, seen, before)
        run.rewind(progress.step)
        if progress.step == 0:
            _measure_held_out(prepared, run, progress, started)
    interrupted, together = False, accelerator.num_processes > 1
    pace, scored, agreement = Pace(), "", distributed.Agreement(device)
    every, save_every = recipe.evaluation.every, settings.save_every or _SAVE_EVERY

    with (
        kept_memory(device, settings.chunk_size),
        stop_signals(launched=together) as stopped,
        progress_display(quiet=quiet or not main) as display,
    ):
        bar = display.add_task("Training", total=schedule.steps, completed=progress.step, note="")
        for batch in batches_ahead(prepared, progress.step):
            clock = time.perf_counter()
            lr = _learning_rate(recipe, progress.step, schedule.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            progress.step += 1

            loss = gradients.compute(batch, progress.step)
            progress.chunk_size = gradients.chunk_size
            accelerator.unscale_gradients()
            grad_norm = clip_gradients(trained.parameters(), settings.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()

            line = {
                "kind": "train",
                "step": progress.step,
                "epoch": progress.step / schedule.steps_per_epoch,
                "loss": loss.value,
                "terms": loss.terms,
                "lr": lr,
                "grad_norm": grad_norm,
                "tokens": loss.tokens,
                "seconds": time.perf_counter() - clock,
            }
            if main and progress.step % settings.log_every == 0:
                run.log(line)

            last = progress.step == schedule.steps
            due = last or (every > 0 and progress.step % every == 0)
            if due:
                with interpolation.applied(encoder):
                    scored = _measure_held_out(prepared, run, progress, started) if main else ""
                    if task is not None:
                        score = _evaluate(encoder, task, step=progress.step)
                        better = progress.note_score(score)
                        scored = f"{_note(progress, score)} {scored}"
                        if main:
                            run.log({"kind": "eval", **score, "best": better})
                            run.flush()
                            if better:
                                save()
                                run.write_run(record, progress, status="running")
                if settings.patience and progress.stale >= settings.patience:
                    last = True
            progress.seconds = time.perf_counter() - started
            interrupted = agreement.after_step(bool(stopped)) and not last
            if main and not last and (interrupted or progress.step % save_every == 0):
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
                state = Checkpoint(trained.state_dict(), optimizer.state_dict(), scaler, progress)
                run.save_checkpoint(state, keep=settings.keep_last)
            pace.add(int(batch.mask.sum()) * accelerator.num_processes)
            display.update(bar, completed=progress.step, note=f"{pace.note} {scored}")
            if last or interrupted:
                break

        was_stopped = distributed.any_process(bool(stopped), device)
        if main:
            run.flush()
            if progress.best is None:
                check_loss(line)
                with interpolation.applied(encoder):
                    save()
            run.write_run(record, progress, status="interrupted" if interrupted else "done")
            if not interrupted:
                run.drop_checkpoints()

    accelerator.wait_for_everyone()
    code = recipe.model.trust_remote_code
    best = SentenceEncoder.from_pretrained(run.path, device=device, trust_remote_code=code) if main else encoder
    return Outcome(progress, best, interrupted, was_stopped)


def _learning_rate(recipe: Recipe, done: int, steps: int) -> float:
    settings = recipe.train
    return learning_rate(
        done, steps=steps, peak=settings.lr, schedule=settings.schedule, warmup_ratio=settings.warmup_ratio
    )


def _evaluate(encoder: SentenceEncoder, task: StsTask, step: int) -> dict[str, Any]:
    """Score the encoder in the main process and tell the others."""
    value = [score_sts(encoder, task).value if distributed.rank() == 0 else None]
    broadcast_object_list(value)
    return {"step": step, "task": task.name, "split": task.split, "spearman": value[0]}


def _measure_held_out(prepared: Prepared, run: RunDirectory, progress: Progress, started: float) -> str:
    """Log how well masked tokens of held-out text are predicted, if there is any, and say it in a few words."""
    if prepared.held_out is None or prepared.masked_lm is None:
        return ""
    found = prepared.held_out.measure(prepared.encoder, prepared.masked_lm)
    seconds = time.perf_counter() - started
    run.log({"kind": "held_out", "step": progress.step, **found, "seconds": seconds})
    run.flush()
    return f"held-out loss {found['loss']:.3f}, accuracy {found['accuracy']:.1%}"


def _note(progress: Progress, score: dict[str, Any]) -> str:
    now, best = score["spearman"], progress.best["spearman"] if progress.best else None
    shown = ["undefined" if figure is None else f"{figure:.2f}" for figure in (now, best)]
    return f"{score['task']} {score['split']} {shown[0]} (best {shown[1]})"
