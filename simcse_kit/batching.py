"""Which rows share a forward pass: length-sorted batches under a token budget, and their padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


def windows(sentences: Iterable[str], size: int, characters: int = 2**24) -> Iterator[list[str]]:
    """Cut any iterable of sentences into lists, checking that each is text.

    Args:
        sentences: The sentences.
        size: The most sentences of a list.
        characters: A list that has so many is full too, so that documents take no more memory than sentences do.

    Raises:
        UserError: If an item is no string, or none that has a UTF-8 form; names its position.
    """
    window: list[str] = []
    held = 0
    for position, sentence in enumerate(sentences):
        _check_text(sentence, position)
        window.append(sentence)
        held += len(sentence)
        if len(window) == size or held >= characters:
            yield window
            window, held = [], 0
    if window:
        yield window


def stated_length(rows: Iterable[Any]) -> int | None:
    """How many rows an iterable says it has, which may be wrong; None if it does not know."""
    try:
        return len(rows)  # type: ignore[arg-type]
    except TypeError:
        return None


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
    lengths = torch.tensor([len(row) for row in rows], device="cpu")  # whatever torch's default may be
    width = max(1, int(lengths.max()))
    ids = np.full((len(rows), width), pad_id)
    for row, place in zip(rows, ids, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(ids), (torch.arange(width, device="cpu") < lengths.unsqueeze(1)).long()


def _check_text(sentence: object, position: int) -> None:
    if not isinstance(sentence, str):
        raise UserError(f"sentence {position} is {type(sentence).__name__}, not a string: {sentence!r}")
    try:
        sentence.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"sentence {position} holds half of a surrogate pair, which is no valid text") from None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a GPU fetches it from pinned memory while it is still busy with what came before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
