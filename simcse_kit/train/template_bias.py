"""PromptBERT's template bias: what a template gives without a text in it."""

from __future__ import annotations

import torch
from torch import Tensor

from simcse_kit.backbone import first_position
from simcse_kit.batching import to_device
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.tokenization import template_tokens


def template_bias(encoder: SentenceEncoder, template: str, lengths: Tensor) -> Tensor:
    """The vectors of a template without a text in it, PromptBERT's template bias, by the text's length.

    The tokens behind the text stay where they are behind a text of that length, with nothing to be attended to in
    between, so that absolute and relative positions are those of the whole input. (Jiang et al. 2022,
    arXiv:2201.04337, section 4.3, where the bias is taken away from the vectors in training alone.)

    Args:
        encoder: One with pooling ``mask``.
        template: The template.
        lengths: Tokens of each input, template and text, [B]; from the CPU a GPU need not be waited for.

    Returns:
        Pooled states, [B, D]: one forward pass over the different lengths.
    """
    before, after = template_tokens(encoder.tokenizer, template)
    ends, rows = torch.unique(lengths.cpu(), return_inverse=True)
    columns = torch.arange(int(ends.max()), device="cpu").expand(len(ends), -1)
    behind = columns - (ends - len(after)).unsqueeze(1)  # the place among the tokens behind the text
    is_before, is_behind = columns < len(before), (behind >= 0) & (behind < len(after))
    tokens = torch.tensor([*before, *after], device="cpu")
    inputs = {
        "input_ids": tokens[torch.where(is_behind, len(before) + behind, columns.clamp(max=len(before) - 1))],
        "attention_mask": (is_before | is_behind).long(),
        "position_ids": columns + first_position(encoder.backbone),
    }
    inputs = {name: to_device(each, encoder.device) for name, each in inputs.items()}
    states: Tensor = encoder.backbone(**inputs).last_hidden_state
    at_mask = ends - len(after) + after.index(encoder.tokenizer.mask_token_id)
    places = torch.arange(len(ends), device="cpu") * columns.shape[1] + at_mask  # into the flattened states
    return states.flatten(0, 1)[to_device(places[rows], encoder.device)]
