"""Progress displays, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Block = TypeVar("Block", bound=Sized)

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


def track_rows(blocks: Iterable[Block], total: int | None) -> Iterator[Block]:
    """Pass blocks of rows through and show how many rows are done, of ``total`` where it is known."""
    with progress_display() as progress:
        task = progress.add_task("Encoding", total=total, note="")
        for block in blocks:
            yield block
            progress.advance(task, len(block))
