"""What is needed next, made by a thread of its own while the device is busy with what is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def made_ahead(tasks: Iterable[Callable[[], Made]], *, count: int, thread_name: str) -> Iterator[Made]:
    """What tasks return, in their order; an error that one raises comes at its place.

    Args:
        tasks: Called by a thread, one after the other; they are themselves taken from the iterable by the caller's.
        count: How many are done, or being done, beside the one that was returned last.
        thread_name: How the thread is called.
    """
    waiting: deque[Future[Made]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)
    try:
        for task in tasks:
            waiting.append(thread.submit(task))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
