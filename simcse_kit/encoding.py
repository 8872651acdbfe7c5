"""From any iterable of texts to an array of vectors, window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize as unit_length

from simcse_kit.batching import CPU_TOKEN_BUDGET, length_sorted_batches, pad, windows
from simcse_kit.errors import UserError
from simcse_kit.fused import fuse
from simcse_kit.packing import packed_batches
from simcse_kit.quantization import Precision, quantize

if TYPE_CHECKING:
    from simcse_kit.encoder import SentenceEncoder

# Sentences that are tokenised, sorted by length and encoded at a time: enough to sort well, bounded in memory.
_WINDOW = 16_384
# Tokens in a batch on a GPU: enough to fill it.
_GPU_TOKEN_BUDGET = 32_768
# Tokens of a window from which on its backbone is fused for it: twice what makes up for that.
_FUSED_TOKENS = 4_096


@torch.no_grad()  # rather than inference mode, whose tensors cannot be jagged
def encode_texts(
    encoder: SentenceEncoder,
    sentences: Iterable[str],
    *,
    normalize: bool,
    max_length: int,
    token_budget: int | None,
    truncate_dim: int | None,
    precision: Precision,
    show_progress: bool,
) -> NDArray[Any]:
    """What ``SentenceEncoder.encode`` does, for an encoder in evaluation mode.

    Memory beside the vectors is bounded by a window, whatever the iterable.
    """
    width = encoder.dimension if truncate_dim is None else truncate_dim
    if not 0 < width <= encoder.dimension:
        raise UserError(f"truncate_dim {width}: the vectors have 1 to {encoder.dimension} dimensions")
    budget = token_budget or (CPU_TOKEN_BUDGET if encoder.device.type == "cpu" else _GPU_TOKEN_BUDGET)
    blocks: Iterable[list[str]] = windows(sentences, _WINDOW)
    if show_progress:
        from simcse_kit.progress import track_rows

        blocks = track_rows(blocks, total=len(sentences) if isinstance(sentences, Sized) else None)

    def encoded() -> Iterator[NDArray[np.float32]]:
        for block in blocks:
            distinct = dict.fromkeys(block)
            vectors = _encode_window(encoder, list(distinct), max_length, budget)[:, :width]
            if normalize:
                vectors = unit_length(vectors, dim=-1)
            if len(distinct) < len(block):
                place = {text: row for row, text in enumerate(distinct)}
                vectors = vectors[[place[text] for text in block]]
            yield vectors.numpy()

    if not isinstance(sentences, Sized):
        return quantize(np.concatenate([np.empty((0, width), np.float32), *encoded()]), precision)
    whole = np.empty((len(sentences), width), np.float32)
    start = 0
    for vectors in encoded():
        whole[start : start + len(vectors)] = vectors
        start += len(vectors)
    return quantize(whole, precision)


def _encode_window(encoder: SentenceEncoder, sentences: list[str], max_length: int, budget: int) -> torch.Tensor:
    """Vectors of some texts, float32 on the CPU, [N, D]."""
    tokens = encoder.tokenize(sentences, max_length)
    vectors = torch.empty(len(tokens), encoder.dimension)
    lengths = [len(row) for row in tokens]
    batches = packed_batches if encoder.packs else length_sorted_batches
    on_cpu = encoder.device.type == "cpu"
    fused = fuse(encoder.backbone) if on_cpu and encoder.packs and sum(lengths) >= _FUSED_TOKENS else None
    for rows in batches(lengths, budget):
        ids, mask = pad([tokens[row] for row in rows], encoder.pad_id)
        vectors[rows] = encoder(ids.to(encoder.device), mask.to(encoder.device), fused).float().cpu()
    return vectors
