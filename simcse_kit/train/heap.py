"""Memory that a step has freed, kept for the next one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of glibc's `mallopt`: with what keeps all memory, and with what it comes to by itself in such a process.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_GIVEN_BACK = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Within this context, on a CPU, freed memory stays with the process, which gives it back at the end.

    Else glibc returns large blocks to the system at once, which clears every page of them again when the next step
    asks for it. Other C libraries are left alone.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # as on macOS and Windows
        mallopt = None
    if mallopt is None or device.type != "cpu":
        yield
        return
    for parameter, value in _KEPT.items():
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _GIVEN_BACK.items():
            mallopt(parameter, value)
        trim(0)
