"""What is needed next, made by threads of its own while the device is busy with what is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def made_ahead(
    tasks: Iterable[Callable[[], Made]],
    *,
    count: int,
    thread_name: str,
    threads: int = 1,
    begin: Callable[[], None] | None = None,
) -> Iterator[Made]:
    """What tasks return, in their order; an error that one raises comes at its place.

    Args:
        tasks: Called by a thread, one after the other; they are themselves taken from the iterable by the caller's.
        count: How many are done, or being done, beside the one that was returned last.
        thread_name: How the thread is called.
        threads: Of several, each does the next task that none has begun.
        begin: What each thread does first.
    """
    waiting: deque[Future[Made]] = deque()
    workers = ThreadPoolExecutor(threads, thread_name_prefix=thread_name, initializer=begin)
    try:
        for task in tasks:
            waiting.append(workers.submit(task))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        workers.shutdown(cancel_futures=True)
