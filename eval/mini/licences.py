"""Where the text of mini comes from, and under which licences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from simcse_kit.errors import UserError

_SOURCES = Path(__file__).with_name("sources.yaml")


def read_licences(files: Iterable[str | Path]) -> list[dict[str, str]]:
    """The sources of some files of text, by their names without what follows the first dot.

    Raises:
        UserError: If there is none for one of them.
    """
    entries: list[dict[str, str]] = yaml.safe_load(_SOURCES.read_text(encoding="utf-8"))
    names = {Path(file).name.partition(".")[0]: Path(file).name for file in files}
    unknown = sorted(name for stem, name in names.items() if stem not in {entry["file"] for entry in entries})
    if unknown:
        raise UserError(f"{_SOURCES}: no licence is named for {', '.join(unknown)}")
    return [entry for entry in entries if entry["file"] in names]
