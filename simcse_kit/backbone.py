"""The transformers side of an encoder: opening and writing its checkpoint, and what models do differently."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers.normalizers import Lowercase, Sequence
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from simcse_kit.errors import UserError

# PromptBERT (Jiang et al. 2022, arXiv:2201.04337): the vector is the state at [MASK] of this sentence about the text.
MASK_TEMPLATE = ('This sentence : "', '" means', ".")


@dataclass
class Backbone:
    """An opened checkpoint.

    Attributes:
        model: The transformers encoder.
        tokenizer: Its tokenizer.
        has_pooler: Whether the checkpoint holds weights for the model's own pooler.
        own_dropout: The dropout rates of the checkpoint's configuration, which is saved with them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    has_pooler: bool
    own_dropout: dict[str, float]


def open_backbone(
    directory: Path, *, dropout: float | None, dtype: torch.dtype, allow_pickle: bool, trust_remote_code: bool
) -> Backbone:
    """Open an encoder's checkpoint and tokenizer.

    Args:
        directory: A transformers checkpoint.
        dropout: Rate of every dropout, attention probabilities included; None: the checkpoint's own.
        dtype: Of the weights.
        allow_pickle: Open pickled weights where there are no safetensors.
        trust_remote_code: Run Python code that the model brings.

    Raises:
        UserError: If it is no encoder, or lacks files or weights.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no model here (it has no config.json)")
    safe = any(directory.glob("*.safetensors"))
    if not safe and not any(directory.glob("*.bin")):
        raise UserError(f"{directory}: no weights here (no *.safetensors)")
    if not safe and not allow_pickle:
        raise UserError(
            f"{directory}: the weights are pickled, and a pickle can run any code; "
            "pass allow_pickle=True (recipe: model.allow_pickle) if you trust their source"
        )
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            _check_encoder(config, directory)
        own_dropout = set_dropout(config, dropout)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        model, info = AutoModel.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=safe,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError) as error:
        raise UserError(f"{directory}: cannot be opened as an encoder: {_first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    lacking = [key for key in missing if not key.startswith("pooler.")]
    mismatched = [str(key) for key in info["mismatched_keys"]]
    if lacking or mismatched:
        named = ", ".join((lacking + mismatched)[:3])
        raise UserError(f"{directory}: the weights do not fit the encoder of config.json: {named} missing or misshapen")
    has_pooler = pooler_linear(model) is not None and not missing
    return Backbone(model, tokenizer, has_pooler, own_dropout)


def write_backbone(
    directory: Path, backbone: Backbone, *, dtype: torch.dtype, hidden_states: bool, pooler: nn.Linear | None
) -> None:
    """Write a transformers checkpoint.

    Args:
        directory: An existing folder.
        backbone: What to write.
        dtype: Of the weights written.
        hidden_states: Have whoever opens it return all hidden states, as poolings over layers need.
        pooler: The layer to write as the backbone's pooler; None: its own, if the checkpoint had one.
    """
    model = backbone.model
    own = pooler_linear(model)
    pooler_name = next((name for name, module in model.named_modules() if module is own), None)
    state = {}
    for key, tensor in model.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        if owner == pooler_name and pooler is not None:
            tensor = pooler.state_dict()[leaf]
        elif owner == pooler_name and not backbone.has_pooler:
            continue
        state[key] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    model.save_pretrained(directory, state_dict=state)
    config = copy.deepcopy(model.config)
    for key, rate in backbone.own_dropout.items():
        setattr(config, key, rate)
    config.output_hidden_states = hidden_states
    config.dtype = dtype
    config.save_pretrained(directory)
    backbone.tokenizer.save_pretrained(directory)


def set_dropout(config: PreTrainedConfig, rate: float | None) -> dict[str, float]:
    """Set every dropout rate of a configuration (None: none), and return the rates it had."""
    own = {
        key: value
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("_drop"))
        and isinstance(value, float | int)
        and not isinstance(value, bool)
    }
    if rate is not None:
        for key in own:
            setattr(config, key, rate)
    return own


def pooler_linear(backbone: PreTrainedModel) -> nn.Linear | None:
    """The linear layer of the backbone's own pooler (a linear layer and tanh on the first state), if it has one."""
    pooler = getattr(backbone, "pooler", None)
    linears = [module for module in pooler.modules() if isinstance(module, nn.Linear)] if pooler is not None else []
    return linears[0] if len(linears) == 1 else None


def position_limit(backbone: PreTrainedModel) -> int:
    """The most tokens, special ones included, that the backbone has positions for."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        # The RoBERTa family counts positions from the padding index + 1.
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
        return table.num_embeddings - offset
    return int(backbone.config.max_position_embeddings)


def released_pooling(name: str) -> str | None:
    """The pooling of the models released with SimCSE: ``cls`` (unsupervised), ``cls_pooler`` (supervised)."""
    found = re.search(r"\b(un)?sup-simcse-", name)
    if not found:
        return None
    return "cls" if found.group(1) else "cls_pooler"


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating-point type from its name; None is float32.

    Raises:
        UserError: If there is no such type.
    """
    found: Any = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
    return found


def with_mask_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A tokenizer that puts every text into ``MASK_TEMPLATE``, the way tokenizers add their special tokens.

    So a long text loses its own end and not the mask, and whoever opens the saved tokenizer does the same. It is of
    the general class, since the classes of model families build their own post-processor when they are opened.

    Raises:
        UserError: If the tokenizer has no mask token, or is not of the tokenizers library.
    """
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise UserError("pooling mask needs a tokenizer with a mask token (and of the tokenizers library)")
    before, after, end = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in MASK_TEMPLATE)
    first, last = tokenizer("")["input_ids"]
    ids = {"before": [first, *before], "after": [*after, tokenizer.mask_token_id, *end, last]}
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = TemplateProcessing(
        single="before $A after",
        special_tokens=[
            {"id": name, "ids": part, "tokens": tokenizer.convert_ids_to_tokens(part)} for name, part in ids.items()
        ],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **tokenizer.special_tokens_map
    )


def install_lower_casing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the tokenizer lower-case texts before its own rules (``do_lower_case`` of sentence-transformers)."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), backend.normalizer]) if backend.normalizer else Lowercase()


def _check_encoder(config: PreTrainedConfig, directory: Path) -> None:
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise UserError(f"{directory}: model type {config.model_type!r} is no encoder (as BERT or RoBERTa are)")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
