"""From any iterable of texts to an array of vectors, window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize as unit_length

from simcse_kit.ahead import made_ahead
from simcse_kit.batching import CPU_TOKEN_BUDGET, length_sorted_batches, pad, to_device, windows
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
# Tokens of a window from which on its backbone is fused for it: what makes up for copying the weights.
_FUSED_TOKENS = 1_024


@torch.inference_mode()
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
    tasks = (partial(_Window.of, block, encoder, max_length) for block in windows(sentences, _WINDOW))
    blocks = made_ahead(tasks, count=1, thread_name="windows-ahead")
    if show_progress:
        from simcse_kit.progress import track_rows

        blocks = track_rows(blocks, total=len(sentences) if isinstance(sentences, Sized) else None)

    def encoded() -> Iterator[NDArray[np.float32]]:
        for block in blocks:
            vectors = _encode_window(encoder, block.tokens, budget)[:, :width]
            if normalize:
                vectors = unit_length(vectors, dim=-1)
            yield (vectors if len(vectors) == len(block) else vectors[block.places]).numpy()

    if not isinstance(sentences, Sized):
        return quantize(np.concatenate([np.empty((0, width), np.float32), *encoded()]), precision)
    whole = np.empty((len(sentences), width), np.float32)
    start = 0
    for vectors in encoded():
        whole[start : start + len(vectors)] = vectors
        start += len(vectors)
    return quantize(whole, precision)


@dataclass(frozen=True)
class _Window:
    """Texts that are sorted by length and encoded together.

    Attributes:
        tokens: Token ids of the different texts.
        places: Which of them each text is.
    """

    tokens: list[list[int]]
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of(cls, texts: list[str], encoder: SentenceEncoder, max_length: int) -> _Window:
        """Tokenise texts."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return cls(encoder.tokenize(list(places), max_length), [places[text] for text in texts])


def _encode_window(encoder: SentenceEncoder, tokens: list[list[int]], budget: int) -> torch.Tensor:
    """Vectors of some texts, float32 on the CPU, [N, D]; a GPU hands them over all at once."""
    device, on_cpu = encoder.device, encoder.device.type == "cpu"
    vectors = torch.empty(len(tokens), encoder.dimension, device=device)
    lengths = [len(row) for row in tokens]
    batches = packed_batches if encoder.packs else length_sorted_batches
    fused = fuse(encoder.backbone) if on_cpu and encoder.packs and sum(lengths) >= _FUSED_TOKENS else None
    for rows in batches(lengths, budget):
        ids, mask = (to_device(each, device) for each in pad([tokens[row] for row in rows], encoder.pad_id))
        vectors[to_device(torch.tensor(rows), device)] = encoder(ids, mask, fused).float()
    return vectors.cpu()
