"""Matrix products on a CPU: which library is the quickest, and those by numpy's BLAS where it is.

On AMD's processors without AVX-512 the libraries that PyTorch multiplies with, oneDNN and MKL, reach three quarters of
what OpenBLAS does, which comes with numpy. But its threads and those of OpenMP, which do the rest of PyTorch's work,
wait for their next task without sleep, and so keep each other from the cores. Here it uses no threads of its own: who
calls it shares the work out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock, Thread, current_thread, main_thread
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

# Multiplications for each thread that make up for waking it.
_FEWEST = 1 << 24
# More threads than these have not been measured: all are woken for each product, and sent away before it.
_MOST_THREADS = 8
# Held while PyTorch's setting for threads to come is not what it was.
_SETTING = Lock()
# What `omp_pause_resource_all` is told: threads go, settings stay (OpenMP 5.0, section 3.2.43).
_SOFT = 1


def usable_threads() -> int:
    """How many threads are to multiply, as many as PyTorch has in the one that asks; 0: PyTorch had better do it.

    Threads begin on the cores of the one that starts them, which OpenMP may have bound to fewer (``OMP_PROC_BIND``).
    And OpenBLAS goes on with threads of its own where another thread than the main one tells it not to.
    """
    threads = torch.get_num_threads()
    if not is_quickest() or current_thread() is not main_thread():
        return 0
    return threads if threads <= min(_MOST_THREADS, len(os.sched_getaffinity(0))) else 0


@lru_cache
def is_quickest() -> bool:
    """Whether this is such a processor, under Linux, and numpy's BLAS is OpenBLAS with threads of its own."""
    built: Any = np.show_config(mode="dicts")
    is_openblas = "openblas" in built.get("Build Dependencies", {}).get("blas", {}).get("name", "")
    layers = {library["threading_layer"] for library in ThreadpoolController().select(internal_api="openblas").info()}
    return (
        _is_made_by("AuthenticAMD")
        and is_openblas
        and layers == {"pthreads"}
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


@lru_cache
def mkl_is_quickest() -> bool:
    """Whether PyTorch's own layers multiply by MKL, under Linux, on a processor of its maker, Intel.

    There it is as quick as oneDNN on the way forward, and quicker on the way back.
    """
    available: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return available and _is_made_by("GenuineIntel")


def _is_made_by(vendor: str) -> bool:
    described = Path("/proc/cpuinfo")
    return described.is_file() and vendor in described.read_text(encoding="utf-8")


@contextmanager
def on_callers_thread() -> Iterator[None]:
    """Within this context, which is for the main thread, OpenBLAS multiplies on whatever thread calls it."""
    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        yield


def keep_torch_to_this_thread(others: int) -> None:
    """Have PyTorch compute what the calling thread asks for on that thread alone.

    Args:
        others: The threads that it takes for what threads to come ask for; those there are keep what they have.
    """
    torch.get_num_threads()  # a thread takes the setting of all over at its first call, whatever it was set to before
    with _SETTING:
        torch.set_num_threads(1)  # of this thread and of those to come
        for_those_to_come = Thread(target=torch.set_num_threads, args=(others,))
        for_those_to_come.start()
        for_those_to_come.join()


class Team:
    """Threads that multiply together, within its context, among operations of PyTorch's on as many threads."""

    def __init__(self, threads: int) -> None:
        """Take the thread that calls, and others.

        Args:
            threads: How many in all, at least 1.
        """
        self._threads, self._stack = threads, ExitStack()

    @staticmethod
    def is_available() -> bool:
        """Whether the threads of PyTorch's operations can be sent away, so that a product has the cores."""
        return bool(_pauses())

    def __enter__(self) -> Team:
        self._stack.enter_context(on_callers_thread())
        self._others = self._stack.enter_context(ThreadPoolExecutor(self._threads, thread_name_prefix="products"))
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """The product of two matrices in float32, [M, K] by [K, N] -> [M, N], without gradients.

        The result does not depend on when which thread computes.
        """
        rows = len(left)
        if rows * right.numel() < self._threads * _FEWEST:
            return left.detach() @ right.detach()
        if self._threads > 1:
            for pause in _pauses():
                pause(_SOFT)
        product = left.new_empty(rows, right.shape[1])
        a, b, out = (tensor.detach().numpy() for tensor in (left, right, product))
        bounds = [rows * part // self._threads for part in range(self._threads + 1)]
        own, *others = (slice(*pair) for pair in pairwise(bounds))
        waiting = [self._others.submit(np.matmul, a[part], b, out=out[part]) for part in others]
        np.matmul(a[own], b, out=out[own])
        for part in waiting:
            part.result()
        return product


@lru_cache
def _pauses() -> list[Callable[[int], int]]:
    """What sends the OpenMP threads of its caller away, of each runtime; none if one is not GNU's, or too old."""
    found: list[Callable[[int], int]] = []
    for runtime in ThreadpoolController().select(user_api="openmp").info():
        pause = getattr(ctypes.CDLL(runtime["filepath"]), "omp_pause_resource_all", None)
        if pause is None or runtime["prefix"] != "libgomp":
            return []
        found.append(pause)
    return found
