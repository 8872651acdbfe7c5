"""Ctrl-C and requests to terminate, noted between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(*, launched: bool) -> Iterator[list[int]]:
    """Note Ctrl-C and a request to terminate instead of dying of them.

    A second one ends the process as usual, unless it was ``launched`` with others: Ctrl-C then arrives from the
    terminal and again from the launcher, which itself ends processes that take too long. Outside the main thread, to
    which signals go, none is noted.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        if not launched:
            signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
