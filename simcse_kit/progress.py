"""Progress displays, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds over which a pace is taken.
_LATELY = 2.0


def progress_display(*, quiet: bool = False) -> Progress:
    """A progress display with counts, elapsed and remaining time; it vanishes when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )


class Pace:
    """How many tokens a second are trained on, of late."""

    def __init__(self) -> None:
        self._since, self._tokens = time.perf_counter(), 0
        self.note = ""

    def add(self, tokens: int) -> None:
        """Count the tokens of a step."""
        self._tokens += tokens
        seconds = time.perf_counter() - self._since
        if seconds >= _LATELY:
            self.note = f"{self._tokens / seconds:,.0f} tokens/s"
            self._since, self._tokens = time.perf_counter(), 0


@contextmanager
def counted_rows(total: int | None, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Show how many rows are done, of ``total`` where it is known.

    Yields:
        What is to be told whenever some are.
    """
    if quiet:  # also of single sentences, which take less time than a display
        yield lambda rows: None
        return
    with progress_display() as progress:
        yield partial(progress.advance, progress.add_task("Encoding", total=total, note=""))
