"""The last layer where pooling ``cls`` reads it, in training: of all but keys and values, each row's first token alone.

Values there do not change, nor does the distribution of dropout; of the tokens left out, nobody sees any. For families
with BERT's modules (BERT, RoBERTa, XLM-R, ELECTRA).

Legend: B rows, P tokens of a packed batch, D width of the states, H heads, d width of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simcse_kit.attention import made_up_batch, packed_attention, packed_states, same_states, tried_out
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

    def keep_first(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gathered, before = args
        return gathered, before[:, packing.first]

    attention = _last_attention(backbone)
    attention.self.forward = partial(_attend_from_first, attention.self)
    handle = attention.output.register_forward_pre_hook(keep_first)
    try:
        (states,) = packed_states(backbone, input_ids, packing, all_layers=False)
    finally:
        handle.remove()
        del attention.self.forward  # the class's own is behind it
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
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # other modules, or called otherwise
            return False
    return found.shape == (len(ids), states.shape[-1]) and same_states(states[0, packing.first], found)


def _last_attention(backbone: PreTrainedModel) -> Any:
    """The last layer's attention: ``self``, and ``output``, which adds to what that gathers what came before it."""
    layers: Any = backbone.encoder
    attention = layers.layer[-1].attention
    if "forward" in vars(attention.self):
        raise AttributeError("its attention is somebody else's")
    return attention


def _attend_from_first(
    module: Any, states: Tensor, attention_mask: Tensor | None = None, *, packing: Packing, **kwargs: Any
) -> tuple[Tensor, None]:
    """What the first token of each row gathers, [1, P, D] -> [1, B, D], as a layer's own attention computes it."""

    def by_head(states: Tensor) -> Tensor:
        return states.view(1, states.shape[1], module.num_attention_heads, -1).transpose(1, 2)  # [1, H, B or P, d]

    query = by_head(module.query(states[:, packing.first]))
    key, value = by_head(module.key(states)), by_head(module.value(states))
    dropout = module.dropout.p if module.training else 0.0
    gathered, _ = packed_attention(
        module, query, key, value, None, dropout=dropout, scaling=module.scaling, packing=packing
    )
    return gathered.flatten(2), None
