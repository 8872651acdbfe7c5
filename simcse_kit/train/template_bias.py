"""PromptBERT's template bias: what a template gives without a text in it."""

from __future__ import annotations

import torch
from torch import Tensor

from simcse_kit.backbone import first_position
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.tokenization import template_tokens


def template_bias(encoder: SentenceEncoder, template: str, lengths: Tensor) -> Tensor:
    """The vectors of a template without a text in it, PromptBERT's template bias, by the text's length.

    The tokens behind the text stay at the positions that they have behind a text of that length. (Jiang et al.
    2022, arXiv:2201.04337, section 4.3, where the bias is taken away from the vectors in training alone.)

    Args:
        encoder: One with pooling ``mask``.
        template: The template.
        lengths: Tokens of each input, template and text, [B].

    Returns:
        Pooled states, [B, D]: one forward pass over the different lengths.
    """
    before, after = template_tokens(encoder.tokenizer, template)
    ends, rows = torch.unique(lengths, return_inverse=True)
    ids = torch.tensor([*before, *after], device=encoder.device).expand(len(ends), -1)
    behind = ends.unsqueeze(1) - len(after) + torch.arange(len(after), device=encoder.device)
    ahead = torch.arange(len(before), device=encoder.device).expand(len(ends), -1)
    positions = torch.cat([ahead, behind], dim=1) + first_position(encoder.backbone)
    states = encoder.backbone(
        input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions
    ).last_hidden_state
    bias: Tensor = states[:, len(before) + after.index(encoder.tokenizer.mask_token_id)]
    return bias[rows]
