"""Augmentations inside the encoder (ConSERT, Yan et al. 2021, arXiv:2105.11741): their settings, draws and effects.

All but shuffling change the output of the embedding module, after its LayerNorm and dropout; ``EmbeddingAugmenter``
applies them. The attention mask stays: what is cut is still attended to and pooled.

Legend: N rows of one view, T tokens, padding included, D width of the embedding module's output; n tokens of a sentence
without padding, [CLS] and [SEP] included.

Where the published code and the paper's idea part ways, ``published=True`` is the code's behaviour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class EmbeddingAugmentation(ABC):
    """What is done to the rows of one view: a draw for each sentence, and its effect at the stages of the forward.

    A stage that an augmentation does not override leaves its tensor as it is.
    """

    @abstractmethod
    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw for one sentence.

        Args:
            n: Its tokens without padding, special ones included.
            tokens: T. The shape depends on it, the draw does not.
            width: D.
            generator: All that is random comes from it.

        Returns:
            What the stages below get as ``drawn``, stacked over the rows of the view.
        """

    def on_ids(self, ids: Tensor, drawn: Tensor) -> Tensor:
        """Change the token ids, [N, T]."""
        return ids

    def on_positions(self, positions: Tensor, drawn: Tensor) -> Tensor:
        """Change the position ids, [N, T], of a backbone that counts them from its padding index + 1."""
        return positions

    def on_embeddings(self, embeddings: Tensor, drawn: Tensor) -> Tensor:
        """Change the output of the embedding module, [N, T, D]."""
        return embeddings

    def on_states(self, states: Tensor, drawn: Tensor) -> Tensor:
        """Change the hidden states of a layer, [N, T, width], as they leave the backbone."""
        return states


class _Cutoff(EmbeddingAugmentation):
    """Zeroes what the draw marks: [T, 1], [1, D] or [T, D] for a sentence, True where it is cut."""

    def on_embeddings(self, embeddings: Tensor, drawn: Tensor) -> Tensor:
        return embeddings.masked_fill(drawn, 0.0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TokenCutoff(_Cutoff):
    """Zero floor(n * rate) random tokens of each sentence, special ones included (the paper's rate: 0.15)."""

    name: Literal["token_cutoff"] = "token_cutoff"
    rate: Rate = 0.15

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Mark the tokens to cut: [T, 1]."""
        return _choose(int(n * self.rate), n, tokens, generator).unsqueeze(1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FeatureCutoff(_Cutoff):
    """Zero floor(D * rate) random dimensions of each sentence, the same ones in all its tokens (the paper: 0.2)."""

    name: Literal["feature_cutoff"] = "feature_cutoff"
    rate: Rate = 0.2

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Mark the dimensions to cut: [1, D]."""
        return _choose(int(width * self.rate), width, width, generator).unsqueeze(0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ElementDropout(_Cutoff):
    """Zero exactly floor(n * D * rate) random elements of each sentence (the paper's rate: 0.2).

    With ``rescale`` the others are divided by 1 - rate, as in ordinary dropout; the published code leaves them.
    """

    name: Literal["dropout"] = "dropout"
    rate: Rate = 0.2
    rescale: bool = False

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Mark the elements to cut: [T, D]."""
        elements = n * width
        return _choose(int(elements * self.rate), elements, tokens * width, generator).view(tokens, width)

    def on_embeddings(self, embeddings: Tensor, drawn: Tensor) -> Tensor:
        """Zero the marked elements, and scale the others if told to."""
        cut = super().on_embeddings(embeddings, drawn)
        return cut / (1.0 - self.rate) if self.rescale else cut


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SpanCutoff(_Cutoff):
    """Keep one random span of max(floor(n * (1 - rate)), 1) tokens of each sentence and zero the others.

    In the published code (the paper does not use it) the others become token 0 instead: [PAD] for BERT, but <s> for
    RoBERTa; their position and segment embeddings stay.
    """

    name: Literal["span_cutoff"] = "span_cutoff"
    rate: Rate
    published: bool = False

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Mark the tokens to cut: [T, 1]."""
        import torch

        kept = min(n, max(int(n * (1.0 - self.rate)), 1))
        start = int(torch.randint(n - kept + 1, (), generator=generator))
        place = torch.arange(tokens)
        return ((place < n) & ((place < start) | (place >= start + kept))).unsqueeze(1)

    def on_ids(self, ids: Tensor, drawn: Tensor) -> Tensor:
        """Replace the marked tokens by token 0, as the published code does."""
        return ids.masked_fill(drawn.squeeze(-1), 0) if self.published else ids

    def on_embeddings(self, embeddings: Tensor, drawn: Tensor) -> Tensor:
        """Zero the marked tokens."""
        return embeddings if self.published else super().on_embeddings(embeddings, drawn)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Shuffle(EmbeddingAugmentation):
    """Give the tokens of each sentence each other's positions, at random; they keep their places in the output.

    The tokens enter the backbone in the order of their new positions, and the states that leave it are put back. For
    absolute positions that equals permuted position ids; relative and rotary ones, which attention computes from the
    order, are shuffled with them.

    ``keep_special`` leaves the first and the last token, [CLS] and [SEP], where they are; the published code moves
    them too. ``published`` counts positions from 0 even where the backbone counts them from its padding index + 1, as
    RoBERTa does: a bug of the published code.
    """

    name: Literal["shuffle"] = "shuffle"
    keep_special: bool = False
    published: bool = False

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw each token's new position: [T], a permutation that leaves padding in place."""
        import torch

        movable = torch.arange(n)[1:-1] if self.keep_special else torch.arange(n)
        positions = torch.arange(tokens)
        positions[movable] = movable[torch.randperm(len(movable), generator=generator)]
        return positions

    def on_ids(self, ids: Tensor, drawn: Tensor) -> Tensor:
        """Put every token at its new position."""
        return ids.scatter(1, drawn, ids)

    def on_positions(self, positions: Tensor, drawn: Tensor) -> Tensor:
        """Count from 0, as the published code does."""
        import torch

        if not self.published:
            return positions
        return torch.arange(positions.shape[1], device=positions.device).expand_as(positions)

    def on_states(self, states: Tensor, drawn: Tensor) -> Tensor:
        """Put every token's state back at the token's place."""
        return states.take_along_dim(drawn.unsqueeze(-1), dim=1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Adversarial:
    """Move each token's embedding by ``noise_norm`` in the direction in which a loss rises most (FGV).

    It starts from the first view's embeddings and takes a forward pass of its own behind that of the others. The loss
    is ``of: labels``, that of the objectives that learn from labels, as published (NLI's three classes); or, without
    labels, ``of: views``, that of the objectives over views, between the first view and the same with another dropout.
    """

    name: Literal["adversarial"] = "adversarial"
    noise_norm: Annotated[float, Field(gt=0.0)] = 1.0
    of: Literal["labels", "views"] = "labels"


EmbeddingSettings = TokenCutoff | FeatureCutoff | ElementDropout | SpanCutoff | Shuffle
EMBEDDING_AUGMENTATIONS: dict[str, type[EmbeddingAugmentation]] = {
    kind.name: kind for kind in get_args(EmbeddingSettings)
}


def _choose(count: int, among: int, size: int, generator: torch.Generator) -> Tensor:
    """Mark ``count`` places, drawn uniformly from the first ``among`` of ``size``: bool [size]."""
    import torch

    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[torch.randperm(among, generator=generator)[:count]] = True
    return chosen
