"""An encoder that nothing was trained on yet: BERT's architecture as the recipe has it, weights drawn by the seed."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from simcse_kit.backbone import Backbone, parse_device, set_dropout
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.modules import Layout
from simcse_kit.template import MASK_TEMPLATE
from simcse_kit.tokenization import open_tokenizer, with_mask_template
from simcse_kit.train.sections import ArchitectureSection, ModelSection


def new_encoder(
    model: ModelSection, architecture: ArchitectureSection, *, seed: int, device: torch.device | None
) -> SentenceEncoder:
    """Make an encoder.

    Args:
        model: Whose ``name`` says where the tokenizer is.
        architecture: Its ``new``.
        seed: Of the weights.
        device: Where it runs; None: a GPU where there is one, else the CPU.

    Raises:
        UserError: If there is no tokenizer.
    """
    tokenizer = open_tokenizer(model.name, revision=model.revision)
    if model.pooling == "mask":
        tokenizer = with_mask_template(tokenizer, model.template or MASK_TEMPLATE)
    tokenizer.padding_side = "right"
    settings = architecture.model_dump() | {
        "intermediate_size": architecture.intermediate_size or 4 * architecture.hidden_size,
        "max_position_embeddings": architecture.max_position_embeddings or model.max_length,
    }
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings)
    own_dropout = set_dropout(config, model.dropout)
    torch.manual_seed(seed)
    backbone = Backbone(BertModel(config), tokenizer, has_pooler=False, own_dropout=own_dropout, weight_files=[])
    encoder = SentenceEncoder(backbone, Layout(pooling=model.pooling), source=model.name)
    return encoder.to(parse_device(device)).eval()
