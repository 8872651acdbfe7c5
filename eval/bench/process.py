"""Work in a process of its own, and the memory that it takes there."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_fresh_process(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in a process that has imported nothing else, and return what it returns.

    The process is forked from a server: one started by this process would inherit its highest resident set, even across
    exec, and so could not tell its own.

    Raises:
        concurrent.futures.process.BrokenProcessPool: If it is killed, for want of memory most likely.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_bytes() -> int:
    """The highest resident set of this process so far, in bytes."""
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest
