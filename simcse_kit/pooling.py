"""Poolings: from the hidden states of a backbone to one vector a row.

Legend: B rows, T tokens, D width; H_k is ``hidden_states[k]`` (H_0 the embedding output, H_L the last layer). Padding
stands on the right.

The papers' names: SimCSE's ``avg_first_last`` is ``first_last_mean`` since January 2022 and was ``first_last_mean_h0``
in the paper's baselines; ``avg_top2`` is ``last2_mean``; ConSERT's ``first_last`` is ``first_last_mean_h0``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """The state at the first position: [B, T, D] -> [B, D]."""
    return states[:, 0]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token states that the mask keeps.

    Args:
        states: Token states, [B, T, D].
        mask: 1 for tokens that count, 0 for the others, [B, T].

    Returns:
        Means, [B, D], summed in float32 at least; a row without tokens gives zeros.
    """
    total = (states * mask.unsqueeze(-1).to(states.dtype)).float().sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(states.dtype)


def masked_max(states: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the positions that the mask keeps, dimension by dimension: [B, T, D] -> [B, D]."""
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


@dataclass(frozen=True)
class Pooling:
    """Which layers are averaged, and how their tokens become one vector.

    Attributes:
        reduce: From token states [B, T, D] and a mask [B, T] to vectors [B, D].
        layers: Indices into ``hidden_states`` whose mean is reduced.
    """

    reduce: Callable[[Tensor, Tensor], Tensor]
    layers: tuple[int, ...] = (-1,)

    def __call__(self, hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Pool the hidden states H_0 ... H_L (or H_L alone, where no other is read): [B, D]."""
        states = hidden_states[self.layers[0]]
        for layer in self.layers[1:]:
            states = states + hidden_states[layer]
        return self.reduce(states / len(self.layers), mask)

    def layer_weights(self, num_layers: int) -> list[float]:
        """The weight of each of H_0 ... H_L in the average, for a backbone of ``num_layers`` layers."""
        weights = [0.0] * (num_layers + 1)
        for layer in self.layers:
            weights[layer] += 1.0
        return weights


# `mask` averages over the [MASK] tokens alone (the encoder passes their mask), and `cls_pooler` puts the checkpoint's
# own pooler, a linear layer and tanh, behind `cls` (the encoder applies it).
POOLINGS: dict[str, Pooling] = {
    "cls": Pooling(first_token),
    "cls_pooler": Pooling(first_token),
    "mean": Pooling(masked_mean),
    "max": Pooling(masked_max),
    "mask": Pooling(masked_mean),
    "last2_mean": Pooling(masked_mean, layers=(-2, -1)),
    "first_last_mean": Pooling(masked_mean, layers=(1, -1)),
    "first_last_mean_h0": Pooling(masked_mean, layers=(0, -1)),
}
