"""Memory that a step has freed: kept for the next one, or, where it is short, given back between chunks."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Parameters of glibc's `mallopt`: with what keeps all memory, and with what it comes to by itself in such a process.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_GIVEN_BACK = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def kept_memory(device: torch.device, chunk_size: int | None) -> Iterator[None]:
    """Within this context, on a CPU, freed memory stays with the process, which gives it back at the end.

    Else glibc returns large blocks to the system at once, which clears every page of them again when the next step
    asks for it. Other C libraries are left alone, and so is the memory of chunks, which are asked for where it is
    short.
    """
    library = _glibc(device)
    if library is None or chunk_size is not None:
        yield
        return
    for parameter, value in _KEPT.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _GIVEN_BACK.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def give_back(device: torch.device) -> None:
    """On a CPU, give freed memory back to the system, that between blocks still in use too.

    What little is kept of a chunk lies scattered, and would hold on to many times its size.
    """
    library = _glibc(device)
    if library is not None:
        library.malloc_trim(0)


def _glibc(device: torch.device) -> Any:
    """The C library, if it is glibc and the device a CPU."""
    try:
        library: Any = ctypes.CDLL(None)
        return library if device.type == "cpu" and library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # as on macOS and Windows
        return None
