"""How much an encoder multiplies, and how much this machine can: what a share of the ceiling is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from transformers import PreTrainedModel

from simcse_kit.backbone import pooler_linear
from simcse_kit.int8 import Int8Linear, Rounded

# Rows and columns of the matrices that show what a device can do at most.
_SIDE = {"cpu": 2_048}
_GPU_SIDE = 8_192
_REPEATS = 3


def encoder_flops(backbone: PreTrainedModel, lengths: Sequence[int]) -> float:
    """Floating-point operations of the matrix products of a forward pass over texts, without any padding.

    Of a linear layer two for each weight and token; of attention in each layer 4 L^2 D for a text of L tokens: queries
    by keys, and probabilities by values. What is not a matrix product is not counted, nor is a pooler. Where layers
    share weights (ALBERT) or attention is local (ModernBERT), this is not what is computed.

    Args:
        backbone: A transformer of width D.
        lengths: Tokens of each text, special ones included.
    """
    pooler = pooler_linear(backbone)
    weights = sum(
        module.weight.numel() for module in backbone.modules() if isinstance(module, nn.Linear) and module is not pooler
    )
    config = backbone.config
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(2 * weights * sum(lengths) + attention * sum(length * length for length in lengths))


def matrix_ceiling(dtype: str, device: torch.device) -> float:
    """Operations a second of the product of two large square matrices, the best of three; on a CPU numpy's too.

    Args:
        dtype: Name of a type of torch.
        device: Where they lie.
    """
    side = _SIDE.get(device.type, _GPU_SIDE)
    left, right = (torch.rand(side, side, device=device) for _ in range(2))
    ways: list[Callable[[], object]]
    if dtype == "int8":
        ways = [partial(Int8Linear.of(nn.Linear(side, side, bias=False)).multiply, Rounded.of(left))]
    else:
        ways = [partial(torch.matmul, *(matrix.to(getattr(torch, dtype)) for matrix in (left, right)))]
    if dtype == "float32" and device.type == "cpu":
        ways.append(partial(np.matmul, left.numpy(), right.numpy()))
    seconds = []
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        for multiply in (way for way in ways for _ in range(_REPEATS)):
            synchronize(device)
            started = time.perf_counter()
            multiply()
            synchronize(device)
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def ceiling_share(flops: float | Sequence[float], seconds: Sequence[float], ceiling: Sequence[float]) -> float:
    """The median over rounds of how much of what a machine could multiply was useful.

    Args:
        flops: Of the useful work of each round, or of any.
        seconds: That it took in each round.
        ceiling: Floating-point operations a second at most, measured in the same rounds.
    """
    return float(np.median(np.array(flops) / np.array(seconds) / np.array(ceiling)))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
