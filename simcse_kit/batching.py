"""Which rows share a forward pass: length-sorted batches under a token budget, and their padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simcse_kit.errors import UserError

TokenIds = Sequence[int] | NDArray[np.integer[Any]]
"""The token ids of a row."""

# Tokens in a batch on a CPU: what its caches hold.
CPU_TOKEN_BUDGET = 2_048


def windows(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut any iterable of sentences into lists of at most ``size``, checking that each is text.

    Raises:
        UserError: If an item is no string, or none that has a UTF-8 form; names its position.
    """
    iterator, start = iter(sentences), 0
    while window := list(islice(iterator, size)):
        for position, sentence in enumerate(window, start):
            _check_text(sentence, position)
        start += len(window)
        yield window


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows of similar length, the longest first, so that little is padded and memory peaks at the start.

    Args:
        lengths: Tokens in each row.
        token_budget: The most tokens, padding included, in a batch; a longer row stands alone.

    Yields:
        Row indices of one batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def pad(rows: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right to the longest row.

    Returns:
        Token ids and attention mask, int64 [B, T] each; T is at least 1, for tokenizers that add no special tokens.
    """
    lengths = torch.tensor([len(row) for row in rows])
    width = max(1, int(lengths.max()))
    ids = np.full((len(rows), width), pad_id)
    for row, place in zip(rows, ids, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(ids), (torch.arange(width) < lengths.unsqueeze(1)).long()


def _check_text(sentence: object, position: int) -> None:
    if not isinstance(sentence, str):
        raise UserError(f"sentence {position} is {type(sentence).__name__}, not a string: {sentence!r}")
    try:
        sentence.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"sentence {position} holds half of a surrogate pair, which is no valid text") from None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; a GPU fetches it from pinned memory while it is still busy with what came before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
