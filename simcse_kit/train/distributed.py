"""Several processes as one: each encodes its share of the batch, and all of them see all vectors.

The gradient equals that of one process with the whole batch. Every process computes the full loss from all vectors,
but only its own carry a gradient; the loss is multiplied by the number of processes, because distributed training
averages gradients over them. (SimCSE's code does not multiply, so its gradient is 1/W of the true one.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist


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
    items = sum_over_processes(torch.tensor(float(count), device=total.device))
    own = total / items.clamp(min=1.0)
    everyone = sum_over_processes(own.detach().clone())
    return own + (everyone - own.detach())


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=device)).item())
