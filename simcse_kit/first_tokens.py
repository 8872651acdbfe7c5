"""The last layer where pooling ``cls`` reads it, in training: after its attention, only the first token of each row.

Values there do not change, nor does the distribution of dropout; of the tokens left out, nobody sees any. For families
whose layers add the residual in a module of its own (BERT, RoBERTa, XLM-R, ELECTRA).

Legend: B rows, P tokens of a packed batch, D width of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simcse_kit.attention import made_up_batch, packed_states, same_states, tried_out
from simcse_kit.packing import Packing


def first_states(backbone: PreTrainedModel, input_ids: Tensor, packing: Packing) -> Tensor:
    """H_L at the first token of each row; differentiable.

    Args:
        backbone: One that ``computes_first_tokens_alone``.
        input_ids: Token ids, padded on the right, [B, T].
        packing: That of the batch's attention mask.

    Returns:
        States, [B, D], in the order of ``packing.by_length``.
    """
    first = packing.first

    def keep_first(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(states[:, first] for states in args)

    handle = _after_attention(backbone).register_forward_pre_hook(keep_first)
    try:
        (states,) = packed_states(backbone, input_ids, packing, all_layers=False)
    finally:
        handle.remove()
    return states.squeeze(0)


def computes_first_tokens_alone(backbone: PreTrainedModel) -> bool:
    """Whether ``first_states`` gives a backbone's own states, as a made-up batch tells.

    Args:
        backbone: One that ``simcse_kit.attention.use_packed_attention`` has found fit.
    """
    ids, mask = made_up_batch(backbone)
    packing = Packing(mask)
    with tried_out(backbone):
        (states,) = packed_states(backbone, ids, packing, all_layers=False)
        try:
            found = first_states(backbone, ids, packing)
        except torch.OutOfMemoryError:  # which says nothing of the layers
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError):  # other modules, or called with something else
            return False
    return found.shape == (len(ids), states.shape[-1]) and same_states(states[0, packing.first], found)


def _after_attention(backbone: PreTrainedModel) -> nn.Module:
    """What makes of the last layer's attention, and what came before it, the states that its other half gets."""
    layers: Any = backbone.encoder
    module: nn.Module = layers.layer[-1].attention.output
    return module
