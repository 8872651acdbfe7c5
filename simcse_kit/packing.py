"""Batches without padding: the tokens of all rows end to end in one row, rows of the same length side by side.

Legend: B rows, T tokens of a padded row, P tokens in all (those of the packed row); n rows of one length L.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from simcse_kit.batching import to_device

# Positions of a batch, were it padded, for each token of its budget.
_MOST_POSITIONS = 4


class Packing:
    """Where the tokens of a padded batch stand when it is packed: the longest rows first.

    Attributes:
        groups: (n, L) of the rows of one length, in the order of the packed row: what lies between is one sequence.
        first: Where the first token of each row stands in the packed row, in the order of the groups, [B].
        bounds: The same, and behind them P, [B + 1], int32, as kernels for such batches take them.
        calls: How many attention layers have kept to these groups so far (see ``simcse_kit.attention``).
    """

    def __init__(self, attention_mask: Tensor, device: torch.device | None = None) -> None:
        """Lay out a batch.

        Args:
            attention_mask: 1 for tokens, 0 for the padding on the right, [B, T]. A row without tokens keeps its first
                position, for poolings to mask, so that no vector is missing.
            device: That of what is packed; None: the mask's.
        """
        self._shape = attention_mask.shape
        width = self._shape[1]
        # Laid out on the CPU: were it a GPU's work, all that it has before it would be waited for.
        lengths = attention_mask.cpu().sum(dim=1).clamp(min=1)
        order = lengths.argsort(descending=True, stable=True)
        ordered = lengths[order]
        found, counts = ordered.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        self.groups: list[tuple[int, int]] = list(zip(counts.tolist(), found.tolist(), strict=True))
        self.calls = 0
        columns = torch.arange(width, device="cpu")
        places = (order.unsqueeze(1) * width + columns)[columns < ordered.unsqueeze(1)]
        parts = places, order.argsort(), nn.functional.pad(ordered.cumsum(0), (1, 0))
        there = to_device(torch.cat(parts), device or attention_mask.device)
        # [P], into the flattened [B * T]; [B], where each row of the batch stands; [B + 1].
        self._places, self._back, bounds = torch.split(there, [len(part) for part in parts])
        self.first, self.bounds = bounds[:-1], bounds.int()

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.groups[0][1]

    @property
    def shortest(self) -> int:
        """Tokens of the shortest row."""
        return self.groups[-1][1]

    def pack(self, padded: Tensor) -> Tensor:
        """Take the tokens out of a padded batch: [B, T, ...] -> [1, P, ...]."""
        return padded.flatten(0, 1)[self._places].unsqueeze(0)

    def pad(self, packed: Tensor) -> Tensor:
        """Bring tokens back to where they stood, zeros elsewhere: [1, P, ...] -> [B, T, ...]."""
        inner = packed.shape[2:]
        padded = packed.new_zeros(self._shape.numel(), *inner)
        return padded.index_copy(0, self._places, packed.squeeze(0)).view(*self._shape, *inner)

    def by_length(self, *packed: Tensor) -> Iterator[list[Tensor]]:
        """The rows of one length after the other, as views.

        Of each [1, P, ...] its [n, L, ...]; of one with a token a row, [1, B, ...] in the order of ``first``, its
        [n, 1, ...].
        """
        parts = [torch.split(tensor.squeeze(0), self._tokens_by_length(tensor.shape[1])) for tensor in packed]
        for (n, _), *group in zip(self.groups, *parts, strict=True):
            yield [part.unflatten(0, (n, -1)) for part in group]

    def _tokens_by_length(self, tokens: int) -> list[int]:
        """How many of the tokens, all or the first of each row, are in the rows of each length."""
        return [n if tokens == len(self.first) else n * length for n, length in self.groups]

    def in_order(self, vectors: Tensor) -> Tensor:
        """Bring one vector a row, [B, D], from the order of ``by_length`` into that of the batch."""
        return vectors[self._back]


def packed_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows by length, the longest first, so that a batch holds few lengths and memory peaks at the start.

    Args:
        lengths: Tokens in each row.
        token_budget: The most tokens in a batch, none of them padding; a longer row stands alone. Where poolings pad
            the states, a batch has at most four times as many positions.

    Yields:
        Row indices of one batch.
    """
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        own = max(1, lengths[row])
        positions = (len(batch) + 1) * max(1, lengths[batch[0] if batch else row])
        if batch and (tokens + own > token_budget or positions > _MOST_POSITIONS * token_budget):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += own
    if batch:
        yield batch
