"""From any iterable of texts to an array of vectors, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize as unit_length

from simcse_kit import blas
from simcse_kit.ahead import made_ahead
from simcse_kit.batching import CPU_TOKEN_BUDGET, length_sorted_batches, pad, stated_length, to_device, windows
from simcse_kit.errors import UserError
from simcse_kit.fused import FusedBackbone, fuse
from simcse_kit.packing import packed_batches
from simcse_kit.progress import counted_rows
from simcse_kit.quantization import Precision, check_precision, quantize

if TYPE_CHECKING:
    from simcse_kit.encoder import SentenceEncoder

# Sentences that are tokenised, sorted by length and encoded at a time: enough to sort well, bounded in memory.
_WINDOW = 16_384
# Tokens in a batch on a GPU: enough to fill it.
_GPU_TOKEN_BUDGET = 32_768
# Tokens of a window from which on its backbone is fused for it: what makes up for copying the weights.
_FUSED_TOKENS = 1_024
# Tokens for each thread from which on batches have a thread each.
_THREAD_TOKENS = 512

_Encoded = tuple[list[int], torch.Tensor]


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
    check_precision(precision, width)
    budget = token_budget or (CPU_TOKEN_BUDGET if encoder.device.type == "cpu" else _GPU_TOKEN_BUDGET)
    tasks = (partial(_Window.of, block, encoder, max_length) for block in windows(sentences, _WINDOW))
    length = stated_length(sentences)
    whole, done = np.empty((length or 0, width), np.float32), 0
    with counted_rows(total=length, quiet=not show_progress) as count:
        for window in made_ahead(tasks, count=1, thread_name="windows-ahead"):
            vectors = _encode_window(encoder, window, budget, count)[:, :width]
            if normalize:
                vectors = unit_length(vectors, dim=-1)
            end = done + len(window)
            if end > len(whole):
                whole.resize((end, width), refcheck=False)  # where it lies, if the system can
            whole[done:end] = vectors if len(vectors) == len(window) else vectors[window.places]
            done = end
    return quantize(whole[:done], precision)


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


def _encode_window(
    encoder: SentenceEncoder, window: _Window, budget: int, count: Callable[[float], None]
) -> torch.Tensor:
    """Vectors of the different texts, float32 on the CPU, [N, D]; a GPU hands them over all at once.

    ``count`` is told how many rows each batch stands for, on average.
    """
    device, tokens = encoder.device, window.tokens
    vectors = torch.empty(len(tokens), encoder.dimension, dtype=torch.float32, device=device)
    lengths = [len(row) for row in tokens]
    way = _Way.of(encoder, lengths, budget)
    batches = packed_batches if encoder.packs else length_sorted_batches

    @torch.inference_mode()
    def encode(rows: list[int]) -> _Encoded:
        ids, mask = pad([tokens[row] for row in rows], encoder.pad_id)
        return rows, encoder(to_device(ids, device), mask, way.fused).float()

    for rows, found in way.all_of(partial(encode, rows) for rows in batches(lengths, way.budget)):
        vectors[to_device(torch.tensor(rows, device="cpu"), device)] = found
        count(len(rows) * len(window) / len(tokens))
    return vectors.cpu()


@dataclass(frozen=True)
class _Way:
    """How the batches of a window are encoded.

    Attributes:
        fused: The backbone as it is now, if it is fused.
        threads: How many batches are encoded at a time, by a thread each, which multiplies by BLAS; None: the caller's
            encodes them one after the other.
        budget: The most tokens in a batch.
    """

    fused: FusedBackbone | None
    threads: int | None
    budget: int

    @classmethod
    def of(cls, encoder: SentenceEncoder, lengths: list[int], budget: int) -> _Way:
        """That of rows of some lengths; each of several threads gets as many batches as the others."""
        tokens = sum(lengths)
        if encoder.device.type != "cpu" or not encoder.packs or tokens < _FUSED_TOKENS:
            return cls(None, None, budget)
        threads = blas.usable_threads()
        if threads and tokens >= threads * _THREAD_TOKENS and not torch.is_autocast_enabled("cpu"):
            batches = threads * math.ceil(tokens / (threads * min(budget, CPU_TOKEN_BUDGET)))
            own = math.ceil(tokens / batches)
            # A longer row would keep one thread busy alone, where all could share it.
            fused = fuse(encoder.backbone, by_blas=True) if max(lengths) <= own else None
            if fused is not None:
                return cls(fused, threads, own)
        return cls(fuse(encoder.backbone), None, budget)

    def all_of(self, tasks: Iterable[Callable[[], _Encoded]]) -> Iterator[_Encoded]:
        """What tasks return, in their order."""
        if self.threads is None:
            yield from (task() for task in tasks)
            return
        with blas.on_callers_thread():
            yield from made_ahead(
                tasks,
                count=2 * self.threads,
                thread_name="batches",
                threads=self.threads,
                begin=partial(blas.keep_torch_to_this_thread, self.threads),
            )
