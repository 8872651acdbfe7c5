"""Attention within the sequences of a packed batch on a GPU: all lengths at once, with dropout and gradients.

By PyTorch's kernels for such batches, called directly: ``torch.nn.attention.varlen`` knows no dropout, and jagged
tensors take longer to call a kernel than it takes to run. They are private to PyTorch, so each is tried before it is
used; where none serves (single precision with a window, say), the batch is padded for its attention alone.

Legend: P tokens of a packed batch, H heads (K of keys and values, which groups of heads share), d width of a head;
B rows, T tokens of a padded one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache

import torch
from torch import Tensor, nn

from simcse_kit.packing import Packing

# How far a kernel may be from the same steps one by one, as a share of the values' length: what rounding explains.
_TOLERANCE = 0.02
# Those of a trial: of two lengths, in two groups.
_TRIED_LENGTHS, _TRIED_HEADS = (5, 2, 2), 2

_Kernel = Callable[[Tensor, Tensor, Tensor, Packing, int | None, float, float], Tensor]


def attend_all_lengths(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, window: int | None, dropout: float, scaling: float
) -> Tensor:
    """What queries gather, each within its sequence: dropout(softmax(q k' scaling)) v.

    Args:
        query: [1, P, H, d], or of each sequence's first token alone, [1, B, H, d], in the order of ``packing.first``;
            differentiable, as are the others.
        key: [1, P, K, d].
        value: As ``key``.
        packing: The sequences.
        window: A token looks at those less than this many positions away; None: at all.
        dropout: Rate of dropout on the attention probabilities.
        scaling: Factor on the dot products.

    Returns:
        Of the query's shape.
    """
    device = query.device
    if torch.is_autocast_enabled(device.type):  # as for PyTorch's own attention
        query, key, value = (each.to(torch.get_autocast_dtype(device.type)) for each in (query, key, value))
    if window is not None and window >= packing.longest:
        window = None
    # Of fewer queries than keys the kernels take the last to be the last token's, which decides what is in a window.
    aligned = window is None or query.shape[1] == key.shape[1]
    kernel = (_kernel(device, query.dtype, query.shape[-1], window is not None) if aligned else None) or _padded
    shared = query.shape[2] // key.shape[2]
    if shared > 1:
        key, value = (each.repeat_interleave(shared, dim=2) for each in (key, value))
    with torch.autocast(device.type, enabled=False):
        return kernel(query, key, value, packing, window, dropout, scaling)


def has_kernels(device: torch.device) -> bool:
    """Whether a device has a kernel for such batches in single precision and in half, for heads of the usual width.

    Raises:
        torch.OutOfMemoryError: If memory ends, which says nothing about another time.
    """
    return all(_kernel(device, dtype, 64, False) is not None for dtype in (torch.float32, torch.bfloat16))


def _flash(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, dropout: float, scaling: float
) -> Tensor:
    """FlashAttention-2 (Dao 2023, arXiv:2307.08691), in half precision."""
    (starts, most), reach = _queries(query, packing), -1 if window is None else window - 1
    states = (each.squeeze(0) for each in (query, key, value))
    found: Tensor = torch.ops.aten._flash_attention_forward(
        *states,
        *(starts, packing.bounds, most, packing.longest, dropout),
        is_causal=False,
        return_debug_mask=False,
        scale=scaling,
        window_size_left=reach,
        window_size_right=reach,
    )[0]
    return found.unsqueeze(0)


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, dropout: float, scaling: float
) -> Tensor:
    """Memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682), in any precision, without a window."""
    if window is not None:
        raise RuntimeError("no window")
    starts, most = _queries(query, packing)
    found: Tensor = torch.ops.aten._efficient_attention_forward(
        *(query, key, value, None, starts, packing.bounds, most, packing.longest, dropout),
        custom_mask_type=0,
        compute_log_sumexp=True,
        scale=scaling,
    )[0]
    return found


def _queries(query: Tensor, packing: Packing) -> tuple[Tensor, int]:
    """Where the queries of each sequence begin, and behind them their number, int32; and the most of one."""
    sequences = len(packing.first)
    if query.shape[1] == sequences:
        return torch.arange(sequences + 1, dtype=torch.int32, device=query.device), 1
    return packing.bounds, packing.longest


def _padded(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, window: int | None, dropout: float, scaling: float
) -> Tensor:
    """Attention over the rows of the padded batch."""
    if query.shape[1] < key.shape[1]:
        every = query.new_zeros(1, key.shape[1], *query.shape[2:]).index_copy(1, packing.first, query)
        return _padded(every, key, value, packing, window, dropout, scaling)[:, packing.first]
    mask = packing.pad(key.new_ones(1, key.shape[1], 1, dtype=torch.bool))  # [B, T, 1]
    seen = mask.view(len(mask), 1, 1, -1)
    if window is not None:
        positions = torch.arange(mask.shape[1], device=query.device)
        seen = seen & ((positions - positions.unsqueeze(1)).abs() < window)
        seen = seen | ~mask.view(len(mask), 1, -1, 1)  # far behind a row's end there would be nothing to look at
    q, k, v = (packing.pad(each).transpose(1, 2) for each in (query, key, value))
    found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    return packing.pack(found.transpose(1, 2))


@lru_cache
def _kernel(device: torch.device, dtype: torch.dtype, width: int, has_window: bool) -> _Kernel | None:
    """The kernel for heads of a width, the quickest first, if any serves; asked in a step, it leaves its draws alone.

    Raises:
        torch.OutOfMemoryError: If memory ends, which says nothing about another time.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]))
        # What it saves is no part of a step that counts what is saved, as checkpointing does.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is))
        for context in (torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False)):
            stack.enter_context(context)
        for kernel in (_flash, _efficient):
            try:
                if _serves(kernel, device, dtype, width, 2 if has_window else None):
                    return kernel
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, RuntimeError, TypeError):  # none such here, or not for these
                continue
    return None


def _serves(kernel: _Kernel, device: torch.device, dtype: torch.dtype, width: int, window: int | None) -> bool:
    """Whether a kernel gives the values and gradients of ``_padded``, and drops."""
    lengths = torch.tensor(_TRIED_LENGTHS, device="cpu")
    packing = Packing((torch.arange(max(_TRIED_LENGTHS), device="cpu") < lengths.unsqueeze(1)).long(), device)
    shape = 1, sum(_TRIED_LENGTHS), _TRIED_HEADS, width
    query, key, value, weights = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(4))

    def tried(kernel: _Kernel, dropout: float) -> list[Tensor]:
        found = kernel(query, key, value, packing, window, dropout, width**-0.5)
        return [found, *torch.autograd.grad((found * weights.detach()).sum(), (query, key, value))]

    expected, found, dropped = tried(_padded, 0.0), tried(kernel, 0.0), tried(kernel, 0.5)
    close = all(
        bool((one - other).float().norm() <= _TOLERANCE * other.float().norm())
        for one, other in zip(found, expected, strict=True)
    )
    return close and not torch.equal(found[0], dropped[0])


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
