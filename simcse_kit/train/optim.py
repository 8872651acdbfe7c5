"""AdamW and the learning rate, as the papers' code has them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

_NORMS = (nn.LayerNorm, nn.RMSNorm)


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.999, eps 1e-8, and no decay on biases and norms (the Hugging Face trainer's).

    Parameters that take no gradient, such as an unused pooler, are left out.
    """
    spared = {
        id(parameter) for module in model.modules() if isinstance(module, _NORMS) for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if id(parameter) in spared or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(
    done: int, *, steps: int, peak: float, schedule: Literal["linear", "constant", "cosine"], warmup_ratio: float
) -> float:
    """The learning rate of the next step.

    Args:
        done: Steps done so far, 0 to ``steps`` - 1.
        steps: Steps of the run.
        peak: The highest rate.
        schedule: ``linear`` or ``cosine`` (half a period) to 0, or ``constant``, after the warm-up.
        warmup_ratio: Share of the steps, rounded up, in which the rate rises linearly from 0.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if done < warmup:
        return peak * done / warmup
    if schedule == "constant":
        return peak
    progress = (done - warmup) / max(1, steps - warmup)
    return peak * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)
