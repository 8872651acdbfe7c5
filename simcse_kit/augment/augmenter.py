"""EmbeddingAugmenter: applies augmentations inside any backbone; and the adversarial perturbation of its embeddings.

Legend: V views of N rows, B = V * N rows of the merged batch, those of the first view first; T tokens, D width of the
embedding module's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from simcse_kit.augment.embedding import EmbeddingAugmentation
from simcse_kit.backbone import first_position, position_ids
from simcse_kit.errors import UserError
from simcse_kit.packing import Packing

_Stage = Callable[[EmbeddingAugmentation, Tensor, Tensor], Tensor]
_DrawnView = tuple[EmbeddingAugmentation, Tensor] | None


class EmbeddingAugmenter:
    """Augments the views of a batch inside a backbone, in the one forward that all of them share.

    Its hooks are registered here and stay: one added after a compiled call would be ignored without a word. They do
    nothing outside ``augment`` and ``recording``, and ``augment`` does nothing in evaluation mode.

    Works on backbones whose embedding module is called ``embeddings`` and normalises what it returns: BERT, RoBERTa,
    XLM-R, DistilBERT, ALBERT, ELECTRA, MPNet, DeBERTa-v2, ModernBERT and others.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        """Register the hooks.

        Raises:
            UserError: If the backbone has no such embedding module.
        """
        embeddings: nn.Module = getattr(backbone, "embeddings", nn.Module())
        norms = [module for module in embeddings.modules() if isinstance(module, nn.LayerNorm)]
        if not norms:
            raise UserError(
                f"{type(backbone).__name__} has no embedding module with a LayerNorm, as BERT has, to augment; "
                "augment the text instead"
            )
        self._backbone = backbone
        self._width = norms[-1].normalized_shape[0]
        self._views: list[_DrawnView] = []
        self._recorded: list[Tensor] | None = None
        self._packing: Packing | None = None
        backbone.register_forward_pre_hook(self._change_inputs, with_kwargs=True)
        embeddings.register_forward_hook(self._change_embeddings)
        backbone.register_forward_hook(self._change_outputs)

    @contextmanager
    def augment(self, views: Sequence[EmbeddingAugmentation | None], attention_mask: Tensor) -> Iterator[None]:
        """Augment what the backbone is given inside this context, in training mode.

        All is drawn here, from the CPU's default generator, which ``torch.manual_seed`` seeds: a number for each row,
        and all of the row's draws from that. So they depend neither on padding nor on the other rows, and every forward
        inside the context sees the same ones. Nothing is drawn where no view is augmented.

        Args:
            views: The augmentation of each view, None for a clean one.
            attention_mask: That of the batch, [B, T]; from a CPU it costs the GPU no wait.

        Raises:
            ValueError: If the rows do not divide into the views.
        """
        if len(attention_mask) % len(views):
            raise ValueError(f"{len(attention_mask)} rows do not divide into {len(views)} views")
        if any(view is not None for view in views):
            self._views = self._draw(views, attention_mask)
        try:
            yield
        finally:
            self._views = []

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Collect the embedding output, [B, T, D], of each forward inside this context, with its gradient graph."""
        recorded: list[Tensor] = []
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None

    def _draw(self, views: Sequence[EmbeddingAugmentation | None], attention_mask: Tensor) -> list[_DrawnView]:
        rows, tokens = attention_mask.shape
        seeds = torch.randint(2**63 - 1, (rows,)).tolist()
        sentences = list(zip(attention_mask.sum(dim=1).tolist(), seeds, strict=True))
        per_view = rows // len(views)
        drawn: list[_DrawnView] = []
        for index, view in enumerate(views):
            if view is None:
                drawn.append(None)
                continue
            draws = [
                view.draw(n, tokens, self._width, torch.Generator().manual_seed(seed))
                for n, seed in sentences[index * per_view : (index + 1) * per_view]
            ]
            drawn.append((view, torch.stack(draws).to(self._backbone.device, non_blocking=True)))
        return drawn

    def _change_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._packing = kwargs.get("packing")
        if not (self._views and module.training):
            return None
        changed = {
            **kwargs,
            "input_ids": self._by_view(lambda view, rows, drawn: view.on_ids(rows, drawn), kwargs["input_ids"]),
        }
        if first_position(self._backbone):
            own = kwargs.get("position_ids")
            if own is None:
                own = position_ids(self._backbone, kwargs["input_ids"])
            positions = self._by_view(lambda view, rows, drawn: view.on_positions(rows, drawn), own)
            if positions is not own:
                changed["position_ids"] = positions
        return args, changed

    def _change_embeddings(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._views and module.training:
            output = self._by_view(lambda view, rows, drawn: view.on_embeddings(rows, drawn), output)
        # Not that of the encoder's self-check, which has no gradients.
        if self._recorded is not None and output.requires_grad:
            padded = output if self._packing is None else self._packing.pad(output)
            self._recorded.append(padded)
            output = padded if self._packing is None else self._packing.pack(padded)
        return output

    def _change_outputs(self, module: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> None:
        self._restore(module, output)
        self._packing = None

    def _restore(self, module: nn.Module, output: ModelOutput) -> None:
        if not (self._views and module.training):
            return
        # A backbone's own pooler has already seen the states, in the order of attention; the encoder does not use it.
        for name in ("last_hidden_state", "hidden_states"):
            states = output.get(name)
            if isinstance(states, tuple):
                output[name] = tuple(
                    self._by_view(lambda view, rows, drawn: view.on_states(rows, drawn), layer) for layer in states
                )
            elif states is not None:
                output[name] = self._by_view(lambda view, rows, drawn: view.on_states(rows, drawn), states)

    def _by_view(self, stage: _Stage, batch: Tensor) -> Tensor:
        """Put each view's rows through a stage of its augmentation; the very same tensor where none changes it.

        The rows of a packed batch are padded for it, and packed again.
        """
        padded = batch if self._packing is None else self._packing.pad(batch)
        blocks = padded.chunk(len(self._views))
        changed = [
            block if drawn is None else stage(drawn[0], block, drawn[1])
            for block, drawn in zip(blocks, self._views, strict=True)
        ]
        if all(new is old for new, old in zip(changed, blocks, strict=True)):
            return batch
        return torch.cat(changed) if self._packing is None else self._packing.pack(torch.cat(changed))


@dataclass(frozen=True, eq=False)
class GivenEmbeddings(EmbeddingAugmentation):
    """Puts a given tensor, [N, T, D], in the place of the embedding output: for adversarial views.

    Attributes:
        embeddings: What enters the layers; gradients flow into it.
    """

    embeddings: Tensor

    def draw(self, n: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
        """Nothing is random."""
        return torch.empty(0)

    def on_embeddings(self, embeddings: Tensor, drawn: Tensor) -> Tensor:
        """Take the given ones."""
        return self.embeddings


def adversarial_noise(loss: Tensor, embeddings: Tensor, norm: float = 1.0) -> Tensor:
    """The perturbation of an embedding output that raises a loss most, of one length in every token.

    ConSERT's adversarial attack, after the fast gradient method (Miyato et al. 2017, arXiv:1605.07725): the gradient g
    of each token as norm * g / (|g| + 1e-10). The published code takes the loss of NLI's labels; without labels, take
    the contrastive loss between the views. The adversarial view is a second forward, with
    ``GivenEmbeddings(embeddings + noise)``, so that it shares the clean view's embedding dropout.

    Args:
        loss: A scalar. Its graph is kept, and no parameter's ``grad`` is touched. The result does not depend on its
            scale, so it may be scaled up where half precision needs that.
        embeddings: The embedding output the loss came from, [B, T, D], as ``EmbeddingAugmenter.recording`` gives it.
        norm: L2 length of every token's noise; where the gradient is zero, as at padding, so is the noise.

    Returns:
        The noise, [B, T, D], without a graph.
    """
    (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
    gradient = gradient.float()
    noise: Tensor = norm * gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)
    return noise.to(embeddings.dtype)
