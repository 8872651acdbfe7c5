"""AdamW and the learning rate, as the papers' code has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.RMSNorm)


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW whose moments are not corrected for beginning at 0, as in BERT's code (Devlin et al. 2019), and so SBERT's.

    The first steps are longer by it, threefold after a hundred. The correction is a factor of each step, taken out of
    the learning rate and of eps beforehand, so that the fused kernel serves.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make a step; one that a gradient scaler finds too large to be made is not counted."""
        found_inf = getattr(self, "found_inf", None)
        made = found_inf is None or not bool(found_inf)
        before = [{key: group[key] for key in ("lr", "eps", "weight_decay")} for group in self.param_groups]
        for group in self.param_groups:
            count = group.get("steps", 0) + 1
            first, second = (1 - beta**count for beta in group["betas"])
            group["lr"] *= first / math.sqrt(second)
            group["eps"] /= math.sqrt(second)
            group["weight_decay"] *= math.sqrt(second) / first
            group["steps"] = count if made else count - 1
        try:
            return super().step(closure)
        finally:
            for group, own in zip(self.param_groups, before, strict=True):
                group.update(own)


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, epsilon: float = 1e-8, bias_correction: bool = True
) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.999, and no decay on biases and norms (by default the Hugging Face trainer's).

    Parameters that take no gradient, such as an unused pooler, are left out.

    Args:
        model: What is trained.
        lr: The learning rate.
        weight_decay: Of all other parameters, times the learning rate.
        epsilon: Added to the root of the second moment.
        bias_correction: Correct the moments for beginning at 0 (Kingma and Ba 2015, algorithm 1).
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
    kind = torch.optim.AdamW if bias_correction else UncorrectedAdamW
    return kind(groups, lr=lr, betas=(0.9, 0.999), eps=epsilon, fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], highest: float) -> Tensor:
    """Shorten gradients, of all parameters together, to a norm of at most so much.

    Args:
        parameters: Those without a gradient are passed over.
        highest: The norm above which they are shortened; infinite: never.

    Returns:
        Their norm before, a scalar.
    """
    clipped = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [cast(Tensor, parameter.grad) for parameter in clipped]
    if any(gradient.device.type != "cpu" for gradient in gradients):
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(clipped, highest, norm)  # asking whether it has to would wait for the GPU
        return norm
    # A product of a long vector with itself is quicker there than its norm.
    squares = [torch.dot(values, values) for values in (gradient.flatten() for gradient in gradients)]
    norm = torch.stack(squares).sum().sqrt()
    if norm > highest:
        nn.utils.clip_grads_with_norm_(clipped, highest, norm)
    return norm


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
