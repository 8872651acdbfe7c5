"""The finished model with its card: what it was trained on, for how long, and how well it predicts held-out text."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

from eval.markdown import markdown_table
from eval.mini.licences import read_licences
from eval.mini.slots import Slot, Slots, is_last
from simcse_kit.data.tokens import RECORD
from simcse_kit.errors import UserError
from simcse_kit.locate import weight_files
from simcse_kit.modules import read_json
from simcse_kit.output import check_new_directory, new_directory
from simcse_kit.train.rundir import BESIDE_MODEL

_CURVE, _CARD = "pretraining.json", "README.md"
# The most that the package may grow by.
_LARGEST = 25 * 10**6


def write_model(output: Path, target: Path) -> None:
    """Write the model of the last slot, ``pretraining.json`` and ``README.md``, whole or not at all.

    Args:
        output: The folder of the slots.
        target: A directory, new or empty.

    Raises:
        UserError: If the slots do not end with one whose learning rate fell to 0, the weights are too large, or the
            licence of some text is not known.
    """
    slots = Slots(output, output, []).found
    if not slots or not slots[-1].is_done or not is_last(slots[-1]):
        raise UserError(f"{output}: no finished model here; the last slot must be done, and trained with --last")
    model = slots[-1].path
    size = sum(file.stat().st_size for file in weight_files(model))
    if size > _LARGEST:
        raise UserError(f"{model}: weights of {size / 1e6:.1f} MB; {_LARGEST / 1e6:.0f} MB is the most")
    record = pretraining(slots)
    card = model_card(
        record, read_licences(name for name in record["data"] if name != RECORD), read_json(model / "config.json"), size
    )
    check_new_directory(target)
    with new_directory(target) as directory:
        shutil.copytree(model, directory, ignore=shutil.ignore_patterns(*BESIDE_MODEL))
        (directory / _CURVE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (directory / _CARD).write_text(card, encoding="utf-8")


def pretraining(slots: list[Slot]) -> dict[str, Any]:
    """What is known of a pre-training.

    Returns:
        ``data`` (hashes by name), ``slots`` (what each of them was) and ``held_out`` (``loss`` and ``accuracy`` by
        ``step``, ``tokens_seen`` and ``seconds`` since the beginning, over all slots).
    """
    told, curve = [], []
    steps, tokens, seconds = 0, 0, 0.0
    for slot in slots:
        run, recipe = slot.run, slot.recipe
        a_step = recipe.train.batch_size * recipe.model.max_length
        # What begins a slot was measured at the end of the one before, but for the rounding of the weights.
        for line in slot.held_out[1 if curve else 0 :]:
            curve.append(
                {
                    "step": steps + line["step"],
                    "tokens_seen": tokens + line["step"] * a_step,
                    "seconds": round(seconds + line["seconds"], 1),
                    "loss": line["loss"],
                    "accuracy": line["accuracy"],
                }
            )
        steps, tokens, seconds = steps + run["step"], tokens + slot.tokens, seconds + run["seconds"]
        told.append(
            {
                **{key: run[key] for key in ("step", "seconds", "seed", "device", "world_size", "commit", "versions")},
                "train": recipe.train.model_dump(),
                "objectives": [objective.model_dump() for objective in recipe.objectives],
                "max_length": recipe.model.max_length,
            }
        )
    # A record of tokens names their directory; what counts of a source is its file's name.
    data = {Path(name).name: digest for name, digest in slots[0].run["data"]["train"].items()}
    return {"data": data, "slots": told, "held_out": curve}


def model_card(record: dict[str, Any], licences: list[dict[str, str]], config: dict[str, Any], size: int) -> str:
    """The card, in Markdown."""
    slots, first, last = record["slots"], record["held_out"][0], record["held_out"][-1]
    (mlm,), devices = slots[-1]["objectives"], sorted({slot["device"] for slot in slots})
    batch, length = slots[-1]["train"]["batch_size"], slots[-1]["max_length"]
    sources = markdown_table(
        ["text", "licence", "as", "file"],
        [[entry["source"], entry["licence"], entry["basis"], entry["file"]] for entry in licences],
        text_columns=4,
    )
    return _wrapped(f"""# simcse-kit/mini

A small English BERT, pre-trained by masked language modelling alone: {config["num_hidden_layers"]} layers,
{config["hidden_size"]} wide, {config["num_attention_heads"]} heads, a lower-cased WordPiece vocabulary of
{config["vocab_size"]:,}, {config["max_position_embeddings"]} positions. {size / 1e6:.1f} MB of weights, opened as
float32. It is a place to begin from: nothing has taught it to compare sentences yet.

```python
from simcse_kit import SentenceEncoder
encoder = SentenceEncoder.from_pretrained("simcse-kit/mini")
```

## Training

`python -m eval.mini pretrain`, {len(slots)} slot{"s" if len(slots) > 1 else ""}: {last["step"]:,} steps of {batch} rows
of {length} tokens, {last["tokens_seen"] / 1e9:.3g} billion tokens in all, {last["seconds"] / 60:.1f} minutes on
{", ".join(devices)}. {mlm["rate"]:.0%} of tokens are predicted{", whole words at a time" if mlm["whole_word"] else ""};
AdamW, learning rate {slots[-1]["train"]["lr"]:g}, precision {slots[-1]["train"]["precision"]}. Between slots weights
are rounded to {slots[-1]["train"]["save_dtype"]} and the optimiser's moments begin anew.

On documents held out, cross-entropy {last["loss"]:.3f} nats and {last["accuracy"]:.1%} of hidden tokens right (before
training {first["loss"]:.3f} and {first["accuracy"]:.1%}). `{_CURVE}` has the whole curve, all settings and the hashes
of the data.

## Data

English prose, cleaned, without duplicates; paragraphs with sentences of the STS tasks and SICK are left out, near
duplicates of them were not looked for. "Stated": the licence was read where the text was; "known": the terms under
which the text is generally known.

{sources}

## Licence and limits

The weights have the licence of simcse_kit; the texts keep theirs, and their authors are named above. The model repeats
what its text says and leaves out: much of it is old books, encyclopedia articles on people and places, and speeches.
""")


def _wrapped(card: str) -> str:
    """A card whose paragraphs have lines of one width, whatever was put into them."""
    blocks = (
        block if block.startswith(("#", "|", "```")) else textwrap.fill(block, 120, break_on_hyphens=False)
        for block in card.strip().split("\n\n")
    )
    return "\n\n".join(blocks) + "\n"
