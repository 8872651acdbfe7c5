"""Output files and directories that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simcse_kit.errors import UserError


def check_output(path: Path) -> None:
    """See that a file can be written at `path`, before the work that it will hold is done.

    Raises:
        UserError: If `path` is a directory, or its folder is missing or not writable.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file in it")
    if not folder.is_dir():
        raise UserError(f"{path}: its folder {str(folder)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: its folder {str(folder)!r} is not writable")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside `path`, which it takes when the block ends without an exception.

    A reader sees the old file or the new one, never a half; after an exception neither a new nor a temporary file
    is left.

    Yields:
        The temporary path, to be written in the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_new_directory(path: Path) -> None:
    """See that a directory can be made at `path`, with the folders above it, before the work that it will hold is done.

    Raises:
        UserError: If something is there, other than an empty directory that can be replaced, or the nearest folder
            above is not writable.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: is there already; name a new directory")
    if path.is_mount():
        raise UserError(f"{path}: is a mount point, which cannot be replaced; name a new directory in it")
    check_can_be_made(path.resolve().parent, str(path))


def check_can_be_made(path: Path, named: str) -> None:
    """See that a directory is at `path` or can be made there, with the folders above it.

    Args:
        path: The directory.
        named: What begins the error message.

    Raises:
        UserError: If the path, or what there is of it, is a file or not writable.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "not writable" if existing.is_dir() else "a file"
        raise UserError(f"{named}: cannot be made there, {existing} is {what}")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a directory under a temporary name beside `path`, which it takes when the block ends without an exception.

    Folders above it are made where they are missing.

    Yields:
        The temporary path, to be made and filled in the block.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
