"""Which way a batch takes through a backbone: padded, packed, fused, at the end for first tokens alone.

All of them give the same vectors; each is quicker than the one before it where it can be had.

Legend: B rows, T tokens, D width of the states.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from simcse_kit.attention import (
    goes_by_length,
    packed_states,
    packs_on,
    use_packed_attention,
    uses_packed_attention,
)
from simcse_kit.batching import to_device
from simcse_kit.first_tokens import computes_first_tokens_alone, first_states
from simcse_kit.fused import FusedBackbone
from simcse_kit.packing import Packing
from simcse_kit.pooling import Pooling, first_token


class Passes:
    """The passes of one backbone; what it can is found out when it is first needed, once."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone

    @property
    def packs(self) -> bool:
        """Whether batches are computed without their padding: by the devices and families that can.

        A backbone that has been given another attention since then (to look at its probabilities, say) gets padding.
        """
        return packs_on(self._backbone.device) and self._can_pack and uses_packed_attention(self._backbone)

    def find_out(self) -> None:
        """Find out whether batches can be packed, before it is needed."""
        _ = self._can_pack

    @cached_property
    def _can_pack(self) -> bool:
        return use_packed_attention(self._backbone)

    @cached_property
    def _can_end_on_first_tokens(self) -> bool:
        return computes_first_tokens_alone(self._backbone)

    def pool(
        self, input_ids: Tensor, attention_mask: Tensor, pooling: Pooling, kept: Tensor, fused: FusedBackbone | None
    ) -> Tensor:
        """The pooled states of a batch, [B, D]; differentiable.

        Args:
            input_ids: Token ids, padded on the right, [B, T].
            attention_mask: 1 for tokens, 0 for padding, [B, T]; on the CPU or with the ids.
            pooling: What makes one vector of a row's states.
            kept: 1 for the tokens that it reads, [B, T]; as the mask.
            fused: In evaluation, the backbone as it is now, fused; where ``packs``.
        """
        all_layers, device = len(pooling.layers) > 1, input_ids.device
        if not self.packs:
            outputs = self._backbone(
                input_ids=input_ids,
                attention_mask=to_device(attention_mask, device),
                output_hidden_states=all_layers,
            )
            states = outputs.hidden_states if all_layers else (outputs.last_hidden_state,)
            return pooling(states, to_device(kept, device))
        packing = Packing(attention_mask, device)
        if pooling.reduce is first_token:
            if fused is not None:
                return packing.in_order(fused.first_states(input_ids, packing))
            # Evaluation has the fused layers for it. A hook may want the states of all tokens, as that of augmentations
            # which move tokens does.
            if self._backbone.training and not self._backbone._forward_hooks and self._can_end_on_first_tokens:
                return packing.in_order(first_states(self._backbone, input_ids, packing))
        if fused is not None:
            states = fused.states(input_ids, packing, all_layers=all_layers)
        else:
            states = packed_states(self._backbone, input_ids, packing, all_layers=all_layers)
        if pooling.reduce is first_token:
            return packing.in_order(states[-1][0, packing.first])
        if not goes_by_length(device):
            read = {layer % len(states) for layer in pooling.layers}
            padded = [packing.pad(each) if layer in read else each for layer, each in enumerate(states)]
            return pooling(padded, to_device(kept, device))
        groups = packing.by_length(packing.pack(kept), *states)
        return packing.in_order(torch.cat([pooling(hidden, part) for part, *hidden in groups]))

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last layer's state of each token, [B, T, D]; at padding, any; differentiable."""
        if self.packs:
            packing = Packing(attention_mask, input_ids.device)
            (states,) = packed_states(self._backbone, input_ids, packing, all_layers=False)
            return packing.pad(states)
        mask = to_device(attention_mask, input_ids.device)
        padded: Tensor = self._backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return padded
