"""Where SentEval's data lies: on this machine, or in the archive that SimCSE's authors published."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from simcse_kit.data.files import sha256_of_files
from simcse_kit.data.hub import fetch_file, stated_sha256
from simcse_kit.errors import UserError, one_line

_ARCHIVE = "hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"
# By any of these a folder in SentEval's layout is known; the last is SentEval's root.
_LAYOUT = ("STS", "SICK", "MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC", "data/downstream")


def data_root() -> Path | None:
    """Return the folder of evaluation and training data on this machine, or None if there is none.

    It is what the environment variable ``SIMCSE_KIT_DATA`` names; where that is not set and the package runs from a
    source checkout, ``../shared/data`` seen from the checkout.

    Raises:
        UserError: if the variable names no folder.
    """
    named = os.environ.get("SIMCSE_KIT_DATA")
    if named:
        if not Path(named).is_dir():
            raise UserError(f"the environment variable SIMCSE_KIT_DATA names {named}, which is no folder")
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    root = checkout.parent / "shared" / "data"
    return root if (checkout / "pyproject.toml").is_file() and root.is_dir() else None


def senteval_folders() -> list[Path]:
    """Return folders in SentEval's layout (``STS/``, ``SICK/``, ``MR/`` and so on).

    They are those of ``data_root()``, its ``sts`` and its ``transfer`` that have this layout; where none has, SimCSE's
    ``senteval.tar``, which is downloaded and unpacked once into the hub's assets cache and found there from then on.

    Raises:
        UserError: if the archive is needed and cannot be had, is not the file that the hub states, or is malformed.
    """
    local = local_senteval_folders()
    if local:
        return local
    _unpack(_download(), _cached())
    return [_cached()]


def local_senteval_folders() -> list[Path]:
    """Those of ``senteval_folders`` that are on this machine; none where the archive would have to be fetched."""
    root = data_root()
    places = [] if root is None else [root, root / "sts", root / "transfer"]
    local = [place for place in places if any((place / content).is_dir() for content in _LAYOUT)]
    return local or [folder for folder in [_cached()] if folder.is_dir()]


def find_folder(task: str, folder: str, data: Sequence[str | Path]) -> Path:
    """Return the first ``folder`` that lies in one of the data folders or below its ``data/downstream``.

    Args:
        task: what begins the error message.
        folder: where the task's files are, in SentEval's layout.
        data: folders in this layout, or SentEval's root.

    Raises:
        UserError: if it lies in none of them.
    """
    roots = [Path(root).expanduser() for root in data]
    found = next(_places(folder, roots), None)
    if found is None:
        raise UserError(f"{task}: no folder {folder} in {', '.join(map(str, roots))}")
    return found


def is_here(folder: str) -> bool:
    """Whether a folder of SentEval's layout lies in one of ``local_senteval_folders``."""
    return any(_places(folder, local_senteval_folders()))


def _places(folder: str, roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        for base in (root, root / "data" / "downstream"):
            if (base / folder).is_dir():
                yield base / folder


def _cached() -> Path:
    """Where the archive is unpacked to."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("simcse_kit", namespace="senteval") / "downstream"


def _download() -> Path:
    """Return the archive, once its hash has been compared with the one that the hub states for it."""
    stated = stated_sha256(_ARCHIVE)
    archive = fetch_file(_ARCHIVE)
    found = sha256_of_files(archive)
    if found != stated:
        raise UserError(f"{archive} has sha256 {found}, the hub states {stated}; delete it and try again")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Extract a tar file into ``folder``, which comes into being only when it is complete."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        content = Path(scratch) / "content"
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(content, filter="data")  # refuses members that lead out of the folder
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive} cannot be unpacked: {one_line(error)}") from error
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
