"""``import``: how soon the commands are there."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
from functools import partial
from pathlib import Path
from statistics import median

from eval.bench.machine import describe_machine
from eval.bench.results import CommandStart, ImportResult
from eval.bench.timing import time_rounds
from simcse_kit.errors import UserError

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# The script's own two lines, and then a look at what they have imported.
_LOOK = """
import importlib, sys
module, function = sys.argv.pop(1).split(":")
try:
    getattr(importlib.import_module(module), function)()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def bench_imports(calls: int) -> ImportResult:
    """Call every console script of the project with ``--help``, by turns.

    Args:
        calls: How often, after one call that warms the disk's cache up.

    Raises:
        UserError: If a script is not installed.
    """
    scripts: dict[str, str] = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]
    folder = Path(sysconfig.get_path("scripts"))
    for name in scripts:
        if not (folder / name).is_file():
            raise UserError(f"{name} is not in {folder}; install the project there: pip install -e .")
    imports_torch = {name: _imports_torch(entry) for name, entry in scripts.items()}
    runs = {name: partial(_run, str(folder / name), "--help") for name in scripts}
    time_rounds(runs, 1)
    seconds = time_rounds(runs, calls)
    return ImportResult(
        machine=describe_machine(),
        commands={
            name: CommandStart(seconds=own, median=median(own), imports_torch=imports_torch[name])
            for name, own in seconds.items()
        },
    )


def _imports_torch(entry: str) -> bool:
    """Whether a script's function, ``module:function``, has torch imported once it has shown its help."""
    return _run(sys.executable, "-c", _LOOK, entry, "--help").stderr.split()[-1] == "True"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True)
