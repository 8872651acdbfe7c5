"""Masked language modelling on documents that are not trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simcse_kit.backbone import evaluating
from simcse_kit.batching import pad
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.objectives.masked_lm import MaskedLM
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.rows import TokenRows, open_held_out

# Of the masks, whatever the recipe's seed is, so that runs can be compared.
_SEED = 0
# Tokens in a pass.
_BUDGET = 8_192


class HeldOut:
    """Measures how well masked tokens of held-out rows are predicted, the same ones at every call."""

    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows

    @classmethod
    def of(cls, recipe: Recipe) -> HeldOut | None:
        """What a recipe has to measure on; None where its training text has no part held out.

        Raises:
            UserError: If the files are damaged, or hold not even one row.
        """
        rows = open_held_out(recipe)
        return None if rows is None else cls(rows)

    @torch.no_grad()
    def measure(self, encoder: SentenceEncoder, masked_lm: MaskedLM) -> dict[str, Any]:
        """The mean cross-entropy (``loss``, in nats) and share predicted right (``accuracy``) of the hidden ``tokens``.

        Without dropout, and in the precision of the weights.
        """
        draws = torch.Generator().manual_seed(_SEED)
        size = max(1, _BUDGET // self.rows.length)
        loss, right, count = 0.0, 0, 0
        with evaluating(encoder, masked_lm):
            for start in range(0, len(self.rows), size):
                ids, mask = pad(self.rows.token_ids(range(start, min(start + size, len(self.rows)))), encoder.pad_id)
                tokens = masked_lm.mask(ids, mask, draws)
                tokens = tokens.to(encoder.device)
                logits: Tensor = masked_lm.logits(encoder, tokens, mask).float()
                loss += torch.nn.functional.cross_entropy(logits, tokens.targets, reduction="sum").item()
                right += int((logits.argmax(dim=-1) == tokens.targets).sum())
                count += len(tokens.targets)
        return {"loss": loss / max(1, count), "accuracy": right / max(1, count), "tokens": count}
