"""What run.json says about where a run comes from."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from simcse_kit.data.files import sha256_of_files
from simcse_kit.data.readers import data_sha256
from simcse_kit.data.tokens import RECORD, read_record
from simcse_kit.evaluate.results import package_versions

if TYPE_CHECKING:
    from simcse_kit.train.prepare import Prepared
    from simcse_kit.train.recipe import Recipe

_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")


def commit() -> str | None:
    """The commit of the source tree this package runs from, with ``+`` if it has changes; None if it has none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Installed into some other project's folder, this package is no part of that project's commits.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.stdout.strip() else "")


def _training_data(recipe: Recipe) -> dict[str, str]:
    """The hash of everything that is trained on, by name; of tokens, that of their record and of the text before."""
    directory = recipe.data.tokens
    if directory is None:
        return data_sha256(recipe.data.train)
    return {**read_record(directory).sources, str(directory / RECORD): sha256_of_files(directory / RECORD)}


def _device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def run_record(prepared: Prepared, *, resumed_from: int | None) -> dict[str, Any]:
    """The fixed part of run.json."""
    recipe = prepared.recipe
    evaluation = {recipe.evaluation.data: prepared.task.data_sha256} if prepared.task else {}
    return {
        "versions": package_versions(_LIBRARIES),
        "python": platform.python_version(),
        "commit": commit(),
        "seed": recipe.seed,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": {"train": _training_data(recipe), "evaluation": evaluation},
        "selected_on_test": recipe.evaluation.on_test,
        "rows": len(prepared.rows),
        "steps": prepared.schedule.steps,
        "device": _device(prepared.accelerator.device),
        "precision": {"no": "fp32"}.get(prepared.accelerator.mixed_precision, prepared.accelerator.mixed_precision),
        "world_size": prepared.accelerator.num_processes,
        "resumed_from": resumed_from,
    }
