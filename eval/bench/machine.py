"""The machine that a benchmark runs on, as its result file describes it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from eval.bench.results import Machine
from simcse_kit.evaluate.results import package_versions
from simcse_kit.train.provenance import commit

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "numpy")


def describe_machine(*, threads: int | None = None, device: torch.device | None = None) -> Machine:
    """This machine.

    Args:
        threads: Of torch; None where it is not used.
        device: What computed; None: the CPU.
    """
    return Machine(
        processor=_processor(),
        cores=usable_cores(),
        threads=threads,
        instructions=None if device is None else _instructions(),
        device=_gpu_name(device) if device is not None and device.type == "cuda" else "cpu",
        python=platform.python_version(),
        versions=package_versions(_PACKAGES),
        commit=commit(),
    )


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_name(device: torch.device) -> str:
    import torch

    name: str = torch.cuda.get_device_name(device)
    return name


def _instructions() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _processor() -> str:
    """The CPU's model; Linux alone has it in a file, where other systems tell it to Python."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
