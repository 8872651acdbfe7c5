"""Times that can be compared: systems take turns, and ratios are of neighbours in time.

A machine is quicker at one minute than at the next, and so a ratio of two systems' totals says as much about the
machine as about them. Here every round runs every system once, each round in another order, and what is reported is the
median of the rounds' ratios, with their spread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from eval.bench.results import Ratio

Clock = Callable[[], float]


def rotated(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: all names, each round beginning with the next one."""
    for number in range(rounds):
        first = number % len(names)
        yield [*names[first:], *names[:first]]


def time_rounds(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Run every system once a round.

    Args:
        runs: What is timed, by the system's name; each returns only when its work is done.
        rounds: How often each is run.
        clock: In seconds.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for order in rotated(list(runs), rounds):
        for name in order:
            started = clock()
            runs[name]()
            seconds[name].append(clock() - started)
    return seconds


def paired_ratio(reference: Sequence[float], seconds: Sequence[float]) -> Ratio:
    """How many times as fast as a reference something is, round by round.

    Args:
        reference: The reference's seconds in each round.
        seconds: The system's own, of the same rounds.

    Returns:
        Median, quartiles (linear interpolation) and extremes of the rounds' ratios.
    """
    ratios = np.array(reference) / np.array(seconds)
    lowest, lower, median, upper, highest = np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return Ratio(median=median, lowest=lowest, lower_quartile=lower, upper_quartile=upper, highest=highest)
