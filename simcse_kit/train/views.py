"""A recipe's views: what the encoder sees of every text, from rows of text to pooled vectors.

Legend: N rows, K views that are encoded (over all texts of a row), T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simcse_kit.augment.augmenter import EmbeddingAugmenter
from simcse_kit.augment.text import BatchAugmentation, open_text_augmentation
from simcse_kit.batching import length_sorted_batches, pad
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.train.batches import TrainingRows
from simcse_kit.train.recipe import Recipe, ViewSection

# Tokens, padding included, in a group of rows of like length.
_TOKEN_BUDGET = 2_048


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
        self, encoder: SentenceEncoder, data: TrainingRows, rows: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment and tokenise some rows, each text cut to the recipe's length, for one forward pass.

        Args:
            encoder: Its tokenizer is used.
            data: All training rows.
            rows: Which of them.
            generator: Of the text augmentations' draws.

        Returns:
            Token ids and attention mask, [K * N, T] each, block by block.
        """
        plain: dict[int, list[list[int]]] = {}
        tokens: list[list[int]] = []
        for block in self.blocks:
            texts = [data.texts[block.text][row] for row in rows]
            if block.augment is not None:
                tokens += encoder.tokenize(block.augment(texts, generator), self.max_length)
                continue
            if block.text not in plain:
                plain[block.text] = encoder.tokenize(texts, self.max_length)
            tokens += plain[block.text]
        return pad(tokens, encoder.pad_id)

    def arrange(self, vectors: list[Tensor]) -> list[list[Tensor]]:
        """Sort the vectors of all blocks, K of [N, D], by text and view."""
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

    Only views without dropout, and those of a second encoder, take a pass of their own. Precision and distribution are
    wrapped around this module, so that the encoder itself, and with it every evaluation, stays in full precision.
    """

    def __init__(self, encoder: SentenceEncoder, second: SentenceEncoder | None, views: Views) -> None:
        super().__init__()
        own = [encoder] if second is None else [encoder, second]
        self.encoders = nn.ModuleList(own)
        augmented = any(block.view.embedding for block in views.blocks)
        self._augmenters = [EmbeddingAugmenter(one.backbone) if augmented else None for one in own]
        self._blocks = views.blocks
        passes: dict[tuple[int, bool], list[int]] = {}
        for place, block in enumerate(views.blocks):
            passes.setdefault((block.encoder, bool(block.view.dropout)), []).append(place)
        self._passes = passes

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors of all blocks, [K * N, D]."""
        if len(self._passes) == 1:
            (way,) = self._passes
            return self._encode(way, self._blocks, input_ids, attention_mask)
        ids, masks = input_ids.chunk(len(self._blocks)), attention_mask.chunk(len(self._blocks))
        vectors: list[Tensor] = [input_ids] * len(self._blocks)
        for way, places in self._passes.items():
            own = [self._blocks[place] for place in places]
            found = self._encode(way, own, *(torch.cat([part[place] for place in places]) for part in (ids, masks)))
            for place, part in zip(places, found.chunk(len(places)), strict=True):
                vectors[place] = part
        return torch.cat(vectors)

    def _encode(self, way: tuple[int, bool], blocks: list[Block], ids: Tensor, mask: Tensor) -> Tensor:
        number, with_dropout = way
        encoder, augmenter = self.encoders[number], self._augmenters[number]
        changes = nullcontext() if augmenter is None else augmenter.augment([b.view.embedding for b in blocks], mask)
        with changes, nullcontext() if with_dropout else without_dropout(encoder):
            vectors: Tensor
            if augmenter is None and ids.device.type == "cpu":
                vectors = _by_length(encoder, ids, mask)
            else:
                vectors = encoder(ids, mask)
        return vectors


def _by_length(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """One forward pass, its rows in groups of like length: on a CPU padding costs as much as text does."""
    lengths: list[int] = mask.sum(dim=1).tolist()
    groups = list(length_sorted_batches(lengths, _TOKEN_BUDGET))
    vectors = []
    for rows in groups:
        longest = max(1, *(lengths[row] for row in rows))
        vectors.append(encoder(ids[rows, :longest], mask[rows, :longest]))
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
