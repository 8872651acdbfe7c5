"""From a step's batch to its gradients, in chunks where the batch does not fit into memory.

The vectors of all chunks are computed first, and from them the loss of the whole batch; on the way back each chunk is
encoded once more, with the same draws, and only then are its activations there. So a batch of any size takes the memory
of one chunk and gives the gradient of the whole: GradCache (Gao et al. 2021, arXiv:2101.06983), by torch's
checkpointing of each chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simcse_kit.batching import to_device
from simcse_kit.errors import UserError
from simcse_kit.train import distributed
from simcse_kit.train.pipeline import step_seed
from simcse_kit.train.prepare import Prepared
from simcse_kit.train.quick import QuickLayers
from simcse_kit.train.views import Batch


class Loss(NamedTuple):
    """The loss of a step, whose gradients are there.

    Attributes:
        value: The weighted sum, a scalar.
        terms: Each objective's, before weighting.
        tokens: Of the texts of all processes, a scalar.
    """

    value: Tensor
    terms: dict[str, Tensor]
    tokens: Tensor


class Gradients:
    """Computes the gradients of a step, in ever smaller chunks until they fit."""

    def __init__(self, prepared: Prepared, model: nn.Module, chunk_size: int | None) -> None:
        """Take what a run has prepared.

        Args:
            prepared: All of it.
            model: Its forward pass, wrapped for precision and distribution.
            chunk_size: Rows of a process in a chunk; None: all of them.
        """
        recipe = prepared.recipe
        self.chunk_size = chunk_size
        parts = (prepared.encoder, prepared.second, prepared.masked_lm)
        self._quick_layers = QuickLayers((part for part in parts if part is not None), prepared.accelerator.device)
        self._prepared, self._model = prepared, model
        # One process alone cannot begin a step again; an adversarial view needs the loss of the whole batch first.
        self._can_split = prepared.accelerator.num_processes == 1 and recipe.adversarial is None

    def compute(self, batch: Batch, step: int) -> Loss:
        """Add the gradients of a batch to the parameters, which have none.

        Out of memory, the step is made again in chunks of half the size, and so are those after it; the batch stays as
        it is.

        Raises:
            UserError: If that does not help, or cannot be done.
        """
        while True:
            try:
                with self._quick_layers.in_use():
                    return self._compute(batch, step)
            except torch.OutOfMemoryError:
                rows = len(batch.ids) // len(self._prepared.views.blocks)
                largest = min(self.chunk_size or rows, rows)
                if largest == 1 or not self._can_split:
                    ways = "" if self._prepared.recipe.adversarial else "train.chunk_size, "
                    raise UserError(
                        f"step {step}: out of memory with {largest} rows at a time; set a smaller "
                        f"{ways}train.batch_size or model.max_length"
                    ) from None
                self.chunk_size = (largest + 1) // 2
            self._model.zero_grad()
            self._prepared.objective.zero_grad()

    def _compute(self, batch: Batch, step: int) -> Loss:
        prepared, accelerator, views = self._prepared, self._prepared.accelerator, self._prepared.views
        # Dropout and augmentations of embeddings draw from torch's own generator.
        torch.manual_seed(step_seed(prepared.recipe.seed, step, accelerator.process_index))
        chunks = [chunk.to(accelerator.device) for chunk in batch.chunks(len(views.blocks), self.chunk_size)]
        self._model.train()
        vectors, token_losses = self._model(chunks)
        blocks = [distributed.gather_rows(block[: batch.own], batch.total) for block in vectors]
        value, terms = prepared.objective(views.arrange(blocks), chunks[0].labels, token_losses)
        accelerator.backward(value * accelerator.num_processes)
        distributed.share_gradients(prepared.objective.parameters())
        tokens = distributed.sum_over_processes(to_device(batch.mask.sum() * bool(batch.own), accelerator.device))
        return Loss(value.detach(), {name: term.detach() for name, term in terms.items()}, tokens)
