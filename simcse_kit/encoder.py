"""SentenceEncoder: a Hugging Face backbone, a pooling and an optional head; text in, vectors out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from simcse_kit import backbone as hf
from simcse_kit.batching import to_device
from simcse_kit.dtypes import parse_dtype, warn_if_slow
from simcse_kit.encoding import encode_texts
from simcse_kit.errors import UserError
from simcse_kit.fused import FusedBackbone
from simcse_kit.int8 import has_int8_layers, quantize_layers
from simcse_kit.locate import DEFAULT_MODEL, locate
from simcse_kit.modules import Dense, Layout, read_layout, write_layout
from simcse_kit.passes import Passes
from simcse_kit.pooling import POOLINGS
from simcse_kit.quantization import Precision
from simcse_kit.template import MASK_TEMPLATE
from simcse_kit.tokenization import pad_id, tokenize, with_lower_casing, with_mask_template


class SentenceEncoder(nn.Module):
    """A sentence encoder: backbone, pooling, dense layers and, in training, an MLP head.

    Legend: B rows, T tokens, D width of the vectors.

    Attributes:
        backbone: The transformers encoder.
        tokenizer: Its tokenizer.
        pooling: A name in ``simcse_kit.pooling.POOLINGS``.
        dense: Layers behind the pooling that are part of the model.
        head: The head of contrastive training (Linear and tanh), or None; see ``keep_head``.
        keep_head: Whether the head is used after training too (supervised SimCSE); otherwise it only trains.
        normalize: Whether ``encode`` brings vectors to unit length unless told otherwise.
        max_length: Tokens a text is cut to, special ones included.
        source: The path or name the encoder was opened from.
        weight_files: The files the weights were read from; none where they were made here.
    """

    def __init__(
        self,
        backbone: hf.Backbone,
        layout: Layout,
        *,
        source: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone.model
        self.tokenizer = backbone.tokenizer
        self.pooling = layout.pooling
        self.dense = nn.Sequential(*layout.dense)
        self.head: Dense | None = None
        self.keep_head = False
        self.normalize = layout.normalize
        self._prompts, self._similarity = layout.prompts, layout.similarity
        # Asked to pool by `cls`, a model whose own pooling is `cls_pooler` leaves this layer out. (No module of ours.)
        self._left_out = [layout.pooler] if layout.pooler is not None and self.pooling == "cls" else []
        self.source = source
        self._opened = backbone
        self._passes = Passes(backbone.model)
        self.weight_files = [*backbone.weight_files, *layout.weight_files]
        self._limit = hf.position_limit(backbone.model)
        self.max_length = min(layout.max_length or backbone.tokenizer.model_max_length, self._limit)
        pooler = hf.pooler_linear(backbone.model)
        if pooler is not None and self.pooling != "cls_pooler":
            # Kept for `save_pretrained`, and out of the optimiser's and of distributed training's sight.
            pooler.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        pooling: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        max_length: int | None = None,
        dropout: float | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        template: str | None = None,
    ) -> SentenceEncoder:
        """Open a transformers checkpoint or a sentence-transformers directory.

        Args:
            name_or_path: A directory, a packaged model's name, or a hub id; looked up in this order (the local hub
                cache before the hub).
            pooling: A name in ``POOLINGS``. None: as the model's modules say; for a plain checkpoint ``mean``, and
                for the models released with SimCSE ``cls`` (unsupervised) or ``cls_pooler`` (supervised).
            device: Where it runs. None: a GPU where there is one, else the CPU.
            dtype: Of the weights, such as ``"bfloat16"``. None: float32, whatever the file holds. ``"int8"``: of the
                backbone's linear layers, on a CPU, to encode but neither train nor save.
            max_length: Tokens a text is cut to, special ones included. None: as the model says.
            dropout: Rate of every dropout of the backbone, attention probabilities included. None: its own.
            revision: Branch, tag or commit on the hub.
            allow_pickle: Open pickled weights where there are no safetensors (a pickle from strangers is a risk).
            trust_remote_code: Run Python code that the model brings.
            template: For pooling ``mask``, what texts are put into (``{text}``, ``{mask}``). None: the model's own, for
                a model without one ``MASK_TEMPLATE``.

        Raises:
            UserError: If the model is found nowhere, is no encoder, lacks weights, or an option does not fit it.
        """
        name = str(name_or_path)
        if pooling is not None and pooling not in POOLINGS:
            raise UserError(f"pooling {pooling!r} is unknown; known: {', '.join(POOLINGS)}")
        place, precision = hf.parse_device(device), parse_dtype(dtype, int8=True)
        warn_if_slow(precision, place)
        integers = precision == torch.int8
        if integers:
            if place.type != "cpu":
                raise UserError(f"dtype int8 is for CPUs, the device is {place}; use bfloat16 or float16 there")
            precision = torch.float32  # of what is no linear layer, and of those until they are rounded
        directory = locate(name, revision=revision, allow_pickle=allow_pickle, allow_code=trust_remote_code)
        layout = read_layout(directory, allow_pickle=allow_pickle)
        layout = layout or Layout(pooling=hf.released_pooling(name) or "mean")
        backbone = hf.open_backbone(
            directory / layout.transformer,
            dropout=dropout,
            dtype=precision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        pooler = hf.pooler_linear(backbone.model) if backbone.has_pooler else None
        if pooler is not None:
            layout.recognise_pooler(pooler)
        if layout.lower_case:
            backbone.tokenizer = with_lower_casing(backbone.tokenizer)
        if pooling == "mask" and (template or layout.pooling != "mask"):
            backbone.tokenizer = with_mask_template(backbone.tokenizer, template or MASK_TEMPLATE)
        layout.pooling = pooling or layout.pooling
        if layout.pooling == "cls_pooler" and pooler is None:
            raise UserError(f"{directory}: the checkpoint has no weights for a pooler, so pooling cls_pooler has none")
        encoder = cls(backbone, layout, source=name)
        if max_length is not None:
            encoder.max_length = encoder.check_max_length(max_length)
        encoder.dense.to(precision)
        encoder.to(place).eval()
        if integers:
            encoder._to_int8()
        return encoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; int8 where it is that of the linear layers."""
        return torch.int8 if has_int8_layers(self.backbone) else self.backbone.dtype

    @property
    def dimension(self) -> int:
        """Width of the vectors that ``encode`` returns, D."""
        layers = self._dense_layers
        return layers[-1].linear.out_features if layers else int(self.backbone.config.hidden_size)

    @property
    def packs(self) -> bool:
        """Whether batches are computed without their padding: by the devices and families that can (found out once)."""
        return self._passes.packs

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows."""
        return pad_id(self.tokenizer)

    @property
    def head_name(self) -> str:
        """``mlp`` if the vectors that ``encode`` returns went through an MLP head, else ``none``."""
        layers = [*self._dense_layers, *([self.head] if self.head is not None and self.keep_head else [])]
        return "mlp" if any(layer.is_mlp for layer in layers) else "none"

    @property
    def weights_sha256(self) -> str:
        """The hash of the files the weights were read from (see ``sha256_of_files``), or of weights made here."""
        return hf.sha256_of_weight_files(self.weight_files) if self.weight_files else hf.sha256_of_weights(self)

    def add_head(self, *, keep: bool) -> None:
        """Put an MLP head behind the vectors.

        Args:
            keep: It stays part of the model after training. A model that has one already, as supervised SimCSE's do,
                then goes on with that; else the head is a fresh one.
        """
        own = self._left_out
        if keep and not own and self.dense and self._dense_layers[-1].is_mlp:
            *others, last = self._dense_layers
            own, self.dense = [last], nn.Sequential(*others)
        head = copy.deepcopy(own[0]) if keep and own else Dense.head(self.dimension)
        self.head, self.keep_head = head.to(device=self.device, dtype=self.dtype), keep

    def forward(self, input_ids: Tensor, attention_mask: Tensor, fused: FusedBackbone | None = None) -> Tensor:
        """Encode token ids; differentiable, not normalised.

        Args:
            input_ids: Token ids, padded on the right, [B, T].
            attention_mask: 1 for tokens, 0 for padding, [B, T]; on the CPU too, where a GPU need not be waited for.
            fused: In evaluation, the backbone as it is now, fused (see ``simcse_kit.fused.fuse``); where ``packs``.

        Returns:
            Vectors, [B, D]; the head is applied in training mode and, if it is kept, always.
        """
        return self.project(self.pool(input_ids, attention_mask, fused))

    def pool(self, input_ids: Tensor, attention_mask: Tensor, fused: FusedBackbone | None = None) -> Tensor:
        """The pooled states of token ids, before any layer behind the pooling; as ``forward`` else."""
        kept = attention_mask
        if self.pooling == "mask":
            kept = to_device(attention_mask, self.device) * (input_ids == self.tokenizer.mask_token_id)
        return self._passes.pool(input_ids, attention_mask, POOLINGS[self.pooling], kept, fused)

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last layer's state of each token, [B, T, D], as ``pool`` sees them; at padding, any; differentiable."""
        return self._passes.token_states(input_ids, attention_mask)

    def project(self, vectors: Tensor) -> Tensor:
        """What follows the pooling, [B, width of the backbone] -> [B, D]: the model's layers and the head."""
        if self.pooling == "cls_pooler":
            pooler = hf.pooler_linear(self.backbone)
            assert pooler is not None
            vectors = torch.tanh(pooler(vectors))
        vectors = self.dense(vectors)
        head = self.head if self.training or self.keep_head else None
        projected: Tensor = vectors if head is None else head(vectors)
        return projected

    def tokenize(self, sentences: list[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each sentence, cut to ``max_length`` tokens, special ones included (None: the encoder's own)."""
        return tokenize(self.tokenizer, sentences, max_length or self.max_length)

    def check_max_length(self, max_length: int) -> int:
        """Return ``max_length`` if the backbone has positions for it.

        Raises:
            UserError: If it has not, or there is no room for a word between the special tokens.
        """
        fewest = self.tokenizer.num_special_tokens_to_add() + 1
        if not fewest <= max_length <= self._limit:
            raise UserError(
                f"max_length {max_length} does not fit {self.source}: it takes {fewest} to {self._limit} tokens"
            )
        return max_length

    def encode(
        self,
        sentences: str | Iterable[str],
        normalize: bool | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        show_progress: bool = False,
        *,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
    ) -> NDArray[Any]:
        """Encode sentences. A sentence that comes again nearby is encoded once.

        Args:
            sentences: One string, or any iterable of strings (a list, a generator, a column of a dataset).
            normalize: Bring vectors to unit length. None: as the model's own modules say.
            max_length: Tokens a text is cut to, special ones included. None: the encoder's own.
            token_budget: The most tokens, padding included, in one forward pass. None: fitted to the device. It
                changes speed and memory, never the vectors.
            show_progress: Show a progress display on standard error.
            truncate_dim: Keep the first so many dimensions, before unit length, as Matryoshka models are made for.
            precision: What the vectors are stored in (see ``simcse_kit.quantization.quantize``).

        Returns:
            Vectors in the order of the sentences, float32 [N, D]; a single string gives [D].

        Raises:
            UserError: If an item is no string, ``max_length`` is more than the model has positions for, there are fewer
                dimensions than are to be kept, or the vectors do not fit the precision.
        """
        if isinstance(sentences, str):
            alone: NDArray[Any] = self.encode(
                [sentences], normalize, max_length, token_budget, truncate_dim=truncate_dim, precision=precision
            )[0]
            return alone
        with hf.evaluating(self):
            return encode_texts(
                self,
                sentences,
                normalize=self.normalize if normalize is None else normalize,
                max_length=self.max_length if max_length is None else self.check_max_length(max_length),
                token_budget=token_budget,
                truncate_dim=truncate_dim,
                precision=precision,
                show_progress=show_progress,
            )

    def save_pretrained(
        self,
        directory: str | Path,
        dtype: str | torch.dtype | None = None,
        *,
        shard_mb: int | None = None,
        token_head: PreTrainedModel | None = None,
    ) -> None:
        """Write a directory that sentence-transformers, transformers and ``from_pretrained`` open, with equal vectors.

        What sentence-transformers knew of the model that was opened, its prompts and similarity function, is kept. A
        kept head becomes a Dense module; behind ``cls`` on a backbone with a pooler it is written as that pooler
        too, as in SimCSE's released models. A head that only trains is left out.

        Args:
            directory: Made where it does not exist; files of the same name are replaced.
            dtype: Of the weights. None: float32.
            shard_mb: The most MB (10^6 bytes) of a file of weights, if they are to be in several.
            token_head: A head for masked tokens to keep with the backbone (``MaskedLM.head``).

        Raises:
            UserError: If the encoder was opened in int8, which leaves too little of its weights.
        """
        if self.dtype == torch.int8:
            raise UserError(f"{self.source}: opened in int8 to encode; to save it, open it in float32")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        stored = parse_dtype(dtype)
        behind = [copy.deepcopy(dense) for dense in self._dense_layers]
        pooler = hf.pooler_linear(self.backbone)
        if self.pooling == "cls_pooler":
            assert pooler is not None
            behind.insert(0, Dense.from_linear(pooler))
        kept = self.head if self.keep_head else None
        if kept is not None:
            behind.append(copy.deepcopy(kept))
        becomes_pooler = kept if self.pooling == "cls" and not len(self.dense) and pooler is not None else None
        layout = Layout(
            pooling="cls" if self.pooling == "cls_pooler" else self.pooling,
            dense=[dense.to(device="cpu", dtype=stored) for dense in behind],
            normalize=self.normalize,
            max_length=self.max_length,
            prompts=self._prompts,
            similarity=self._similarity,
        )
        # Who cuts texts by the tokenizer's own limit shall cut them where this encoder does.
        self.tokenizer.model_max_length = self.max_length
        hf.write_backbone(
            directory,
            self._opened,
            dtype=stored,
            hidden_states=len(POOLINGS[self.pooling].layers) > 1,
            pooler=becomes_pooler.linear if becomes_pooler else None,
            head=token_head,
            shard_mb=shard_mb,
        )
        write_layout(directory, layout, self.backbone.config, self.tokenizer.mask_token_id)

    def _to_int8(self) -> None:
        self._passes.find_out()  # while rounding does not yet blur whether packed and padded states are equal
        quantize_layers(self.backbone, keep=[hf.pooler_linear(self.backbone)])

    @property
    def _dense_layers(self) -> list[Dense]:
        return [layer for layer in self.dense if isinstance(layer, Dense)]


@lru_cache(maxsize=2)
def _opened(model: str) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(model)


def encode(
    sentences: str | Iterable[str], model: str | Path | SentenceEncoder = DEFAULT_MODEL, **options: Any
) -> NDArray[Any]:
    """Encode sentences with a model that is opened once and kept.

    Args:
        sentences: One string, or any iterable of strings.
        model: A name or path as for ``SentenceEncoder.from_pretrained``, or an encoder.
        **options: As for ``SentenceEncoder.encode``.

    Returns:
        Vectors, float32 [N, D]; a single string gives [D].
    """
    encoder = model if isinstance(model, SentenceEncoder) else _opened(str(model))
    return encoder.encode(sentences, **options)
