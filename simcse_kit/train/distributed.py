"""Several processes as one: each encodes its share of the batch, and all of them see all vectors.

The gradient equals that of one process with the whole batch. Every process computes the full loss from all vectors,
but only its own carry a gradient; the loss is multiplied by the number of processes, because distributed training
averages gradients over them. (SimCSE's code does not multiply, so its gradient is 1/W of the true one.)
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

# Between two questions whether to stop there are so many steps, or as many as take so many seconds.
_MOST_STEPS, _SECONDS = 10, 5.0


def world_size() -> int:
    """The number of processes; 1 outside a distributed launch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def leave() -> None:
    """Leave the other processes, once nothing is left to be done with them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share(rows: list[int], process: int, processes: int) -> list[int]:
    """The rows of one process: contiguous, so that all shares in the order of the processes give the batch again."""
    return rows[process * len(rows) // processes : (process + 1) * len(rows) // processes]


def gather_rows(own: Tensor, total: int) -> Tensor:
    """Collect the vectors of all processes.

    Args:
        own: This process's rows, [n, D], n as ``share`` gives it.
        total: Rows over all processes, N.

    Returns:
        All rows in the order of the batch, [N, D]; gradients flow to this process's own rows alone.
    """
    processes = world_size()
    if processes == 1:
        return own
    sizes = [len(share(list(range(total)), process, processes)) for process in range(processes)]
    padded = own.new_zeros(max(sizes), own.shape[1])
    padded[: len(own)] = own.detach()
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded)
    parts = [part[:size] for part, size in zip(everyone, sizes, strict=True)]
    parts[rank()] = own
    return torch.cat(parts)


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Undo the multiplication of the loss for parameters outside the distributed model, the objectives' own.

    Their gradient is of all vectors, and so the same in every process, which no averaging divides.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= world_size()


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def mean_over_processes(total: Tensor, count: int) -> Tensor:
    """The mean over the items of all processes; gradients flow to this process's own items alone.

    Args:
        total: The sum over this process's items, a scalar.
        count: Their number.
    """
    items = sum_over_processes(total.new_full((), float(count)))
    own = total / items.clamp(min=1.0)
    everyone = sum_over_processes(own.detach().clone())
    return own + (everyone - own.detach())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    return bool(_largest([float(flag)], device)[0])


class Agreement:
    """Whether one of the processes was told to stop, which they ask each other between steps.

    Asking waits for the device, so quick steps go by between two questions; slow ones do not, since whoever launched
    the processes gives them half a minute to end.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._every, self._steps, self._since = device, 1, 0, time.perf_counter()

    def after_step(self, told: bool) -> bool:
        """Count a step; whether to stop now, the same in all processes.

        Args:
            told: Whether this process was told to.
        """
        if world_size() == 1:
            return told
        self._steps += 1
        if self._steps < self._every:
            return False
        now = time.perf_counter()
        stop, seconds = _largest([float(told), (now - self._since) / self._steps], self._device)
        self._every = max(1, min(_MOST_STEPS, int(_SECONDS / max(seconds, 1e-9))))
        self._steps, self._since = 0, now
        return bool(stop)


def _largest(values: list[float], device: torch.device) -> list[float]:
    """The largest of each value over all processes."""
    if world_size() == 1:
        return values
    found = torch.tensor(values, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [float(value) for value in found.tolist()]
