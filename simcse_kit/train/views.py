"""A recipe's views: what the encoder sees of every text, from rows of text to pooled vectors.

Legend: N rows, K views that are encoded (over all texts of a row), T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simcse_kit.augment.augmenter import EmbeddingAugmenter, GivenEmbeddings, adversarial_noise
from simcse_kit.augment.embedding import Adversarial, EmbeddingAugmentation
from simcse_kit.augment.text import BatchAugmentation, open_text_augmentation
from simcse_kit.batching import CPU_TOKEN_BUDGET, TokenIds, length_sorted_batches, pad, to_device
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.objectives.masked_lm import MaskedLM, MaskedTokens
from simcse_kit.template import MASK_TEMPLATE
from simcse_kit.tokenization import TemplateTokenizer
from simcse_kit.train import distributed
from simcse_kit.train.heap import give_back
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rows import Rows
from simcse_kit.train.sections import ViewSection
from simcse_kit.train.template_bias import template_bias
from simcse_kit.train.weighted import WeightedObjectives


@dataclass(frozen=True)
class Block:
    """One view of one text of every row: N rows of the merged batch.

    Attributes:
        text: Which text of the row.
        view: What is done to it.
        encoder: Which encoder sees it: 0, or 1 where the recipe has a second one and this is not the anchor.
        augment: The augmentation of the text, opened.
    """

    text: int
    view: ViewSection
    encoder: int
    augment: BatchAugmentation | None

    @property
    def embedding(self) -> EmbeddingAugmentation | None:
        """The augmentation of its embeddings; that of an adversarial view depends on the batch."""
        own = self.view.embedding
        return None if isinstance(own, Adversarial) else own


class _Way(NamedTuple):
    """How blocks are encoded; those that agree in it share a pass."""

    encoder: int
    dropout: bool


class Batch(NamedTuple):
    """What a process sees of a step's rows.

    Attributes:
        ids: Token ids, [K * N, T], block by block.
        mask: Attention mask, [K * N, T]; stays on the CPU, which lays out what a GPU computes.
        masked: The same with masked tokens, where some objective predicts them.
        labels: Of the rows of all processes; None where they have none.
        own: How many rows of each block count: those of this process; where there are none, one stands in for them.
        total: The rows of all processes.
    """

    ids: Tensor
    mask: Tensor
    masked: MaskedTokens | None
    labels: Tensor | None
    own: int
    total: int

    def chunks(self, views: int, rows: int | None) -> list[Batch]:
        """The batch in parts of at most so many of its rows (None: whole), each with all K views of them."""
        seen = torch.arange(len(self.ids)).view(views, -1)
        if rows is None or rows >= seen.shape[1]:
            return [self]
        parts = [part.flatten() for part in torch.split(seen, rows, dim=1)]
        return [
            self._replace(
                ids=self.ids[part],
                mask=self.mask[part],
                masked=None if self.masked is None else self.masked.of_rows(part),
            )
            for part in parts
        ]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        masked = None if self.masked is None else self.masked.to(device)
        labels = None if self.labels is None else to_device(self.labels, device)
        return self._replace(ids=to_device(self.ids, device), masked=masked, labels=labels)


class Views:
    """The views of a recipe, opened."""

    def __init__(self, recipe: Recipe) -> None:
        """Open what the augmentations need.

        Raises:
            UserError: If an augmentation is unknown, or lacks a word list or a model.
        """
        sections = recipe.views_per_text
        opened = [
            open_text_augmentation(view.text.name, **view.text.settings) if view.text else None for view in sections
        ]
        self.texts = recipe.data.texts
        self.max_length = recipe.model.max_length
        # The first view's vectors stand for those with the same dropout mask.
        self._same = [view.dropout == "same" for view in sections]
        self.blocks = [
            Block(text, view, int(recipe.train.encoders == 2 and (text > 0 or number > 0)), augment)
            for text in range(self.texts)
            for number, (view, augment) in enumerate(zip(sections, opened, strict=True))
            if view.dropout != "same"
        ]

    def collate(
        self,
        tokenizer: TemplateTokenizer,
        data: Rows,
        rows: list[int],
        generator: torch.Generator,
        masked_lm: MaskedLM | None = None,
    ) -> Batch:
        """Augment and tokenise this process's share of some rows, each text cut to the recipe's length.

        Args:
            tokenizer: Of the encoder.
            data: All training rows.
            rows: Which of them are the batch.
            generator: Of the text augmentations' and the masked tokens' draws.
            masked_lm: What masks tokens of all views.
        """
        own = distributed.share(rows, distributed.rank(), distributed.world_size())
        # A process without rows goes along with one that does not count.
        seen = own or rows[:1]
        plain: dict[tuple[int, str | None], Sequence[TokenIds]] = {}
        tokens: list[TokenIds] = []
        for block in self.blocks:
            tokenize = partial(tokenizer.tokenize, max_length=self.max_length, template=block.view.template)
            if block.augment is not None:
                tokens += data.token_ids(seen, block.text, _augmented(block.augment, generator, tokenize))
                continue
            key = block.text, block.view.template
            if key not in plain:
                plain[key] = data.token_ids(seen, block.text, tokenize)
            tokens += plain[key]
        ids, mask = pad(tokens, tokenizer.pad_id)
        masked = masked_lm.mask(ids, mask if own else torch.zeros_like(mask), generator) if masked_lm else None
        labels = None if data.labels is None else data.labels[rows]
        return Batch(ids, mask, masked, labels, len(own), len(rows))

    def arrange(self, vectors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Sort the vectors of all blocks, K of [N, D] (none where no objective sees any), by text and view."""
        if not vectors:
            return []
        by_text: list[list[Tensor]] = []
        left = iter(vectors)
        for _ in range(self.texts):
            views: list[Tensor] = []
            for same in self._same:
                views.append(views[0] if same else next(left))
            by_text.append(views)
        return by_text


class MergedForward(nn.Module):
    """The forward pass of training: all views of a batch at once.

    Only views without dropout, those of a second encoder, an adversarial view and masked tokens take a pass of their
    own. Precision and distribution are wrapped around this module, so that the encoder itself, and with it every
    evaluation, stays in full precision.
    """

    def __init__(
        self,
        recipe: Recipe,
        encoder: SentenceEncoder,
        views: Views,
        objective: WeightedObjectives,
        *,
        second: SentenceEncoder | None = None,
        masked_lm: MaskedLM | None = None,
    ) -> None:
        super().__init__()
        own = [encoder] if second is None else [encoder, second]
        self.encoders, self.masked_lm = nn.ModuleList(own), masked_lm
        self._encoders = own
        augmented = any(block.view.embedding for block in views.blocks)
        self._augmenters = [EmbeddingAugmenter(one.backbone) if augmented else None for one in own]
        self._blocks = views.blocks if recipe.pooled else []
        self._template = recipe.model.template or MASK_TEMPLATE
        self._removes_bias = recipe.model.remove_template_bias
        self._attack = recipe.adversarial
        # As functions, since the objectives' parameters are no part of this module.
        self._of_labels, self._of_views = objective.of_labels, objective.of_views
        self._passes: dict[_Way, list[int]] = {}
        for place, block in enumerate(self._blocks):
            if not block.view.adversarial:
                self._passes.setdefault(_way(block), []).append(place)

    def forward(self, chunks: Sequence[Batch]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Encode a batch.

        Args:
            chunks: The batch whole, or in parts; of several parts no activations are kept, and each is encoded once
                more, with the same draws, when gradients flow back to it.

        Returns:
            The vectors of each block's rows, K of [N, D] (none where no objective is on vectors), and the losses of
            token objectives by name, over all processes.
        """
        if len(chunks) == 1:
            found = [self._encode_chunk(chunks[0])]
        else:
            found = [checkpoint(self._encode_after_others, chunk, use_reentrant=False) for chunk in chunks]
        vectors = [torch.cat(parts) for parts in zip(*(vectors for vectors, _ in found), strict=True)]
        totals = [total for _, total in found if total is not None]
        hidden = sum(len(chunk.masked.places) for chunk in chunks if chunk.masked is not None)
        losses = {"mlm": distributed.mean_over_processes(torch.stack(totals).sum(), hidden)} if totals else {}
        return vectors, losses

    def _encode_after_others(self, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
        """As ``_encode_chunk``, in the memory that other chunks have left."""
        give_back(batch.ids.device)
        return self._encode_chunk(batch)

    def _encode_chunk(self, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
        """The vectors of each block, and the sum of the hidden tokens' losses, if any are predicted."""
        vectors = self._encode_views(batch)
        if self.masked_lm is None or batch.masked is None:
            return vectors, None
        return vectors, self.masked_lm(self._encoders[0], batch.masked, batch.mask)

    def _encode_views(self, batch: Batch) -> list[Tensor]:
        vectors: list[Tensor] = [batch.ids] * len(self._blocks)
        with ExitStack() as stack:
            attacked = self._augmenters[0] if self._attack else None
            recorded = stack.enter_context(attacked.recording()) if attacked else []
            for way, places in self._passes.items():
                for place, part in zip(places, self._encode(way, places, batch), strict=True):
                    vectors[place] = part
        if self._attack:
            # The first pass is the one that the first views are in.
            self._add_adversarial(self._attack, batch, vectors, recorded[0])
        return vectors

    def _add_adversarial(self, attack: Adversarial, batch: Batch, vectors: list[Tensor], recorded: Tensor) -> None:
        """Encode the adversarial view of each text, from the first view's embeddings, and put it into its place.

        ``recorded`` are the embeddings of the pass that the first views were in, [B, T, D].
        """
        way = _way(self._blocks[0])
        firsts = [
            place for place, block in enumerate(self._blocks) if place == 0 or block.text > self._blocks[place - 1].text
        ]

        def gathered(views: Sequence[Tensor]) -> list[Tensor]:
            return [distributed.gather_rows(view[: batch.own].float(), batch.total) for view in views]

        clean = gathered([vectors[place] for place in firsts])
        with torch.no_grad():
            others = gathered(self._encode(way, firsts, batch)) if attack.of == "views" else clean
        with torch.autocast(batch.ids.device.type, enabled=False):
            if attack.of == "views":
                loss = self._of_views([list(pair) for pair in zip(clean, others, strict=True)])
            else:
                loss = self._of_labels(clean, batch.labels)
        # The mean over the rows might vanish in half precision; their sum has the same direction.
        moved = recorded + adversarial_noise(loss * batch.total, recorded, attack.noise_norm)
        by_place = dict(zip(self._passes[way], moved.chunk(len(self._passes[way])), strict=True))
        attacked = [place for place, block in enumerate(self._blocks) if block.view.adversarial]
        changes = [GivenEmbeddings(by_place[place]) for place in firsts]
        found = self._encode(_way(self._blocks[attacked[0]]), attacked, batch, changes)
        for place, part in zip(attacked, found, strict=True):
            vectors[place] = part

    def _encode(
        self, way: _Way, places: list[int], batch: Batch, given: Sequence[EmbeddingAugmentation] | None = None
    ) -> Sequence[Tensor]:
        """The vectors of some blocks in one pass, [N, D] each; ``given`` is done to their embeddings or their own."""
        encoder, augmenter = self._encoders[way.encoder], self._augmenters[way.encoder]
        ids, mask = (torch.cat([part.chunk(len(self._blocks))[place] for place in places]) for part in batch[:2])
        with nullcontext() if way.dropout else without_dropout(encoder):
            if augmenter is None:
                pads = ids.device.type == "cpu" and not encoder.packs
                pooled = _by_length(encoder.pool, ids, mask) if pads else encoder.pool(ids, mask)
            else:
                with augmenter.augment(given or [self._blocks[place].embedding for place in places], mask):
                    pooled = encoder.pool(ids, mask)
            if self._removes_bias:
                pooled = pooled - self._bias(encoder, places, mask)
        vectors: Tensor = encoder.project(pooled)
        return vectors.chunk(len(places))

    def _bias(self, encoder: SentenceEncoder, places: list[int], mask: Tensor) -> Tensor:
        """The template bias of each row of some blocks, [B, D]."""
        templates = [self._blocks[place].view.template or self._template for place in places]
        lengths = mask.sum(dim=1).chunk(len(places))
        return torch.cat([template_bias(encoder, *pair) for pair in zip(templates, lengths, strict=True)])


def _augmented(
    augment: BatchAugmentation, generator: torch.Generator, tokenize: Callable[[list[str]], list[list[int]]]
) -> Callable[[list[str]], list[list[int]]]:
    """Tokenise texts once they are augmented."""
    return lambda texts: tokenize(augment(texts, generator))


def _way(block: Block) -> _Way:
    return _Way(block.encoder, bool(block.view.dropout))


def _by_length(encode: Callable[[Tensor, Tensor], Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """One forward pass, its rows in groups of like length: on a CPU padding costs as much as text does."""
    lengths: list[int] = mask.sum(dim=1).tolist()
    groups = list(length_sorted_batches(lengths, CPU_TOKEN_BUDGET))
    vectors = []
    for rows in groups:
        longest = max(1, *(lengths[row] for row in rows))
        vectors.append(encode(ids[rows, :longest], mask[rows, :longest]))
    places = torch.tensor([row for rows in groups for row in rows]).argsort()
    return torch.cat(vectors)[places]


@contextmanager
def without_dropout(encoder: nn.Module) -> Iterator[None]:
    """Switch an encoder's dropout off and leave the rest of its training mode on (its head, augmentations)."""
    backbone = encoder.backbone
    assert isinstance(backbone, nn.Module)
    kept = {backbone, getattr(backbone, "embeddings", None)}
    switched = [module for module in backbone.modules() if module.training and module not in kept]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True
