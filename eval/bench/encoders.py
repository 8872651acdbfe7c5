"""The systems that encode texts, ours and the peers', behind one protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simcse_kit import int8
from simcse_kit.backbone import quiet
from simcse_kit.dtypes import has_instructions
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.locate import locate

_DEFAULT_BATCH_SIZE = 32
_BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)


class System(Protocol):
    """What encodes texts.

    Attributes:
        batch_size: Texts a forward pass; None: as the system sees fit.
    """

    batch_size: int | None

    @property
    def word_table(self) -> nn.Module | None:
        """The module that every computed token goes through, padding too; None where there is none to watch."""

    def fit(self, texts: list[str]) -> None:
        """Choose, before anything is timed, what depends on the texts."""

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        """Encode n texts: [n, D]."""


@dataclass(frozen=True)
class Model:
    """What all systems open.

    Attributes:
        name: A directory, a packaged model's name or a hub id.
        device: Where it runs.
        max_length: Tokens a text is cut to; None: as the model says.
    """

    name: str
    device: torch.device
    max_length: int | None


class Ours:
    """``SentenceEncoder.encode`` as it is called by default."""

    def __init__(self, model: Model, dtype: str) -> None:
        self.batch_size: int | None = None
        self._encoder = SentenceEncoder.from_pretrained(
            model.name, device=model.device, dtype=dtype, max_length=model.max_length
        )

    @property
    def word_table(self) -> nn.Module:
        """The backbone's."""
        table: nn.Module = self._encoder.backbone.get_input_embeddings()
        return table

    def fit(self, texts: list[str]) -> None:
        """Nothing depends on the texts."""

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        """Encode texts."""
        return self._encoder.encode(sentences)


class SentenceTransformers:
    """``SentenceTransformer.encode``, at one batch size or the best of several."""

    def __init__(
        self,
        model: Model,
        dtype: str,
        *,
        batch_sizes: Sequence[int] = (_DEFAULT_BATCH_SIZE,),
        backend: Literal["torch", "onnx", "openvino"] = "torch",
        attention: str | None = None,
    ) -> None:
        from sentence_transformers import SentenceTransformer

        options = {"dtype": getattr(torch, dtype), "attn_implementation": attention} if backend == "torch" else {}
        with quiet():
            self._model = SentenceTransformer(
                str(locate(model.name)),
                device=str(model.device),
                backend=backend,
                local_files_only=True,
                model_kwargs={key: value for key, value in options.items() if value is not None},
            )
        if model.max_length is not None:
            self._model.max_seq_length = model.max_length
        self._backend, self._batch_sizes = backend, batch_sizes
        self.batch_size: int | None = batch_sizes[0]

    @property
    def word_table(self) -> nn.Module | None:
        """The backbone's, where torch runs it."""
        backbone = self._model.transformers_model if self._backend == "torch" else None
        return backbone.get_input_embeddings() if backbone is not None else None

    def fit(self, texts: list[str]) -> None:
        """Choose the batch size that is fastest on these texts."""
        if len(self._batch_sizes) == 1:
            return

        def seconds(batch_size: int) -> float:
            self.batch_size = batch_size
            started = time.perf_counter()
            self.encode(texts)
            return time.perf_counter() - started

        self.batch_size = min(self._batch_sizes, key=seconds)

    def encode(self, sentences: list[str], /) -> NDArray[np.float32]:
        """Encode texts."""
        vectors: NDArray[np.float32] = self._model.encode(
            sentences, batch_size=self.batch_size or _DEFAULT_BATCH_SIZE, show_progress_bar=False
        )
        return vectors


@dataclass(frozen=True)
class Kind:
    """How a system is opened, and what it needs.

    Attributes:
        open: From the model and the type of its weights.
        dtype: That type, by torch's name.
        packages: What has to be installed, as it is imported.
        on_gpu: Whether it needs a GPU.

    ``dtype`` int8 and half precision need a CPU that is made for them.
    """

    open: Callable[[Model, str], System]
    dtype: str = "float32"
    packages: tuple[str, ...] = ()
    on_gpu: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Why this machine cannot run it, if it cannot."""
        absent = [package for package in self.packages if find_spec(package) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.dtype == "int8" and (device.type != "cpu" or not int8.is_available()):
            return f"needs {int8.NEEDED}"
        if not has_instructions(getattr(torch, self.dtype), device):
            return f"needs a processor with instructions for {self.dtype}"
        return "needs a GPU" if self.on_gpu and device.type != "cuda" else None


_unpadded = partial(SentenceTransformers, attention="flash_attention_2")
ENCODERS: Mapping[str, Kind] = {
    "sentence-transformers": Kind(SentenceTransformers),
    "ours": Kind(Ours),
    "ours-bf16": Kind(Ours, "bfloat16"),
    "ours-int8": Kind(Ours, "int8"),
    "sentence-transformers-best": Kind(partial(SentenceTransformers, batch_sizes=_BATCH_SIZES)),
    "sentence-transformers-bf16": Kind(SentenceTransformers, "bfloat16"),
    "sentence-transformers-unpadded": Kind(_unpadded, "bfloat16", packages=("flash_attn",), on_gpu=True),
    "sentence-transformers-onnx": Kind(
        partial(SentenceTransformers, backend="onnx"), packages=("optimum", "onnxruntime")
    ),
    "sentence-transformers-openvino": Kind(
        partial(SentenceTransformers, backend="openvino"), packages=("optimum", "openvino")
    ),
}
"""All systems by name."""


def computed_tokens(system: System, texts: list[str]) -> int | None:
    """The tokens that a system computes for texts, special ones and padding included; None if they cannot be seen.

    This encodes the texts, and not as quickly as otherwise: where somebody watches, ours fuses no layers.

    Args:
        system: It has been called before: what it finds out at its first call is no part of this.
        texts: Any.
    """
    with _counted(system.word_table) as counts:
        system.encode(texts)
    return sum(counts) or None


@contextmanager
def _counted(table: nn.Module | None) -> Iterator[list[int]]:
    """The number of tokens of each call of a word table."""
    counts: list[int] = []

    def count(module: nn.Module, arguments: object, embedded: Tensor) -> None:
        counts.append(embedded.shape[:-1].numel())

    handle = table.register_forward_hook(count) if table is not None else None
    try:
        yield counts
    finally:
        if handle is not None:
            handle.remove()
