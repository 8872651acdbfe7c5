"""What runs of sentence-transformers' trainers share: their training columns, and the record beside their models."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_kit.data.overlap import fingerprints, write_fingerprints
from simcse_kit.evaluate.results import RECORDED_PACKAGES, package_versions
from simcse_kit.train.provenance import commit

if TYPE_CHECKING:
    from simcse_kit.data.sts import StsTask

_HIGHEST_SCORE = 5.0


def scored_columns(task: StsTask) -> dict[str, list[Any]]:
    """The pairs of an STS set as sentence-transformers reads them, gold scores between 0 and 1."""
    (subset,) = task.subsets
    labels = (subset.scores / _HIGHEST_SCORE).tolist()
    return {"sentence1": subset.sentences1, "sentence2": subset.sentences2, "label": labels}


def write_record(directory: Path, train: StsTask, best: dict[str, Any], *, seed: int) -> None:
    """Write beside a model what result files say of its training, with the keys that simcse-train has.

    Args:
        directory: The model's.
        train: What it was trained on.
        best: The evaluation that chose it: step, task, split, spearman.
        seed: Of the training.
    """
    record = {
        "versions": package_versions((*RECORDED_PACKAGES, "sentence-transformers")),
        "commit": commit(),
        "seed": seed,
        "command": shlex.join(["python", "-m", f"eval.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "data": {"train": {f"STSB train ({train.text})": train.data_sha256}},
        "best": best,
        "selected_on_test": False,
    }
    (directory / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (subset,) = train.subsets
    write_fingerprints(directory, fingerprints([subset.sentences1, subset.sentences2]), None)
