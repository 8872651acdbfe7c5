"""The transformers side of an encoder: opening and writing its checkpoint, and what models do differently."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from simcse_kit.data.files import sha256_of_files
from simcse_kit.errors import UserError, one_line
from simcse_kit.locate import weight_files
from simcse_kit.modules import read_json

_POOLER = "pooler."
# The models released with SimCSE, by their names on the hub, in folders named after them, and in the hub cache.
_RELEASED = re.compile(r"(?:^|[/\\]|--)(un)?sup-simcse-(?:bert|roberta)-(?:base|large)")


@dataclass
class Backbone:
    """An opened checkpoint.

    Attributes:
        model: The transformers encoder.
        tokenizer: Its tokenizer.
        has_pooler: Whether the checkpoint holds weights for the model's own pooler.
        own_dropout: The dropout rates of the checkpoint's configuration, which is saved with them.
        weight_files: The files its weights were read from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    has_pooler: bool
    own_dropout: dict[str, float]
    weight_files: list[Path]


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
    files = _check_files(directory, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
            _check_family(config, directory)
            own_dropout = set_dropout(config, dropout)
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
            model, info = AutoModel.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                use_safetensors=files[0].suffix == ".safetensors",
                trust_remote_code=trust_remote_code,
                # Else the misshapen ones would be told to a log; here they become an error that names them.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # what malformed files bring about; the tokenizers library raises plain Exceptions
        raise UserError(f"{directory}: cannot be opened as an encoder: {one_line(error)}") from error
    _check_opened(model, info, tokenizer, directory)
    has_pooler = pooler_linear(model) is not None and not any(key.startswith(_POOLER) for key in info["missing_keys"])
    # Positions count from the left, so padding stands on the right, in the files we write too.
    tokenizer.padding_side = "right"
    return Backbone(model, tokenizer, has_pooler, own_dropout, files)


def write_backbone(
    directory: Path,
    backbone: Backbone,
    *,
    dtype: torch.dtype,
    hidden_states: bool,
    pooler: nn.Linear | None,
    head: PreTrainedModel | None = None,
    shard_mb: int | None = None,
) -> None:
    """Write a transformers checkpoint.

    Args:
        directory: An existing folder.
        backbone: What to write.
        dtype: Of the weights written.
        hidden_states: Have whoever opens it return all hidden states, as poolings over layers need.
        pooler: The layer to write as the backbone's pooler; None: its own, if the checkpoint had one.
        head: A masked language model without its encoder, to write with the backbone in it.
        shard_mb: The most MB (10^6 bytes) of a file of weights, if they are to be in several.
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
        state[key if head is None else f"{head.base_model_prefix}.{key}"] = tensor
    if head is not None:
        state.update(head.state_dict())
    written = {
        key: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in each_once(state).items()
    }
    config = copy.deepcopy(model.config)
    for key, rate in backbone.own_dropout.items():
        setattr(config, key, rate)
    config.output_hidden_states = hidden_states
    config.dtype = dtype
    largest = sys.maxsize if shard_mb is None else shard_mb * 10**6
    if head is not None:
        config.architectures = [type(head).__name__]
    tokenizer = copy.deepcopy(backbone.tokenizer)  # another thread may be using it
    if tokenizer.is_fast:
        # Else the file would cut and pad as the last call here did, for whoever opens it with `tokenizers` itself.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    for stale in ("model.safetensors", "model.safetensors.index.json"):  # either would be opened before the other
        (directory / stale).unlink(missing_ok=True)
    with quiet():
        model.save_pretrained(directory, state_dict=written, max_shard_size=largest)
        config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def each_once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without the further names of tied tensors, which safetensors refuses."""
    first: dict[tuple[int, int], str] = {}
    return {
        name: tensor.detach()
        for name, tensor in state.items()
        if first.setdefault((tensor.data_ptr(), tensor.numel()), name) == name
    }


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


def first_position(backbone: PreTrainedModel) -> int:
    """The position id of a text's first token: 0, but in the RoBERTa family the padding index + 1."""
    padding_idx = getattr(_position_table(backbone), "padding_idx", None)
    return 0 if padding_idx is None else padding_idx + 1


def position_ids(backbone: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The position id of each token in the backbone's own counting, [B, T] -> [B, T]; at padding, any."""
    first = first_position(backbone)
    if first == 0:
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    # The RoBERTa family counts the tokens that are not its padding token.
    counted = input_ids.ne(first - 1).long()
    positions: Tensor = counted.cumsum(dim=1) * counted + first - 1
    return positions


def position_limit(backbone: PreTrainedModel) -> int:
    """The most tokens, special ones included, that the backbone has positions for."""
    table = _position_table(backbone)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - first_position(backbone)
    return int(backbone.config.max_position_embeddings)


def sha256_of_weight_files(files: list[Path]) -> str:
    """The hash of a model's weight file; of several files, the hash over their hashes."""
    hashes = [sha256_of_files(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def sha256_of_weights(model: nn.Module) -> str:
    """The hash of a model's weights as they are in memory: their names and their bytes."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def released_pooling(name: str) -> str | None:
    """The pooling of the models released with SimCSE: ``cls`` (unsupervised), ``cls_pooler`` (supervised)."""
    found = _RELEASED.search(name)
    if not found:
        return None
    return "cls" if found.group(1) else "cls_pooler"


def parse_device(device: str | torch.device | None) -> torch.device:
    """A device from its name; None: a GPU where there is one, else the CPU.

    Raises:
        UserError: If this machine has no such device.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not to be had here ({one_line(error)}); use cpu") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and reports off the terminal: what they tell of, this module checks itself."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within this context modules are in evaluation mode; behind it each of their parts is in its own again."""
    training = [part for module in modules for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _position_table(backbone: PreTrainedModel) -> nn.Module | None:
    return getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)


def _check_files(directory: Path, *, allow_pickle: bool, trust_remote_code: bool) -> list[Path]:
    """Refuse a directory that cannot be opened, or not without a permission; return its weight files."""
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no model here (it has no config.json)")
    safe, pickled = weight_files(directory), weight_files(directory, pickled=True)
    if not safe and not pickled:
        raise UserError(
            f"{directory}: no weights here (no model.safetensors; pickled ones are fetched only with allow_pickle=True)"
        )
    if not safe and not allow_pickle:
        raise UserError(
            f"{directory}: the weights are pickled, and a pickle can run any code; "
            "pass allow_pickle=True (recipe: model.allow_pickle, commands: --allow-pickle) if you trust their source"
        )
    described = read_json(directory / "config.json")
    if "auto_map" in described and described.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise UserError(
            f"{directory}: the model brings Python code of its own; "
            "pass trust_remote_code=True (recipe: model.trust_remote_code) if you trust its source"
        )
    return safe or pickled


def _check_family(config: PreTrainedConfig, directory: Path) -> None:
    """Refuse a model of transformers' own that is no text encoder; what a model's own code is, is for its user."""
    of_transformers = type(config).__module__.startswith("transformers.")
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if of_transformers and not (encoder and hasattr(config, "max_position_embeddings")):
        raise UserError(f"{directory}: model type {config.model_type!r} is no encoder (as BERT or RoBERTa are)")


def _check_opened(
    model: PreTrainedModel, info: dict[str, Any], tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Refuse what transformers opens with parts of it made up."""
    # Position ids are no weights, and a pooler is used only where the pooling asks for it.
    missing = [key for key in info["missing_keys"] if "position_ids" not in key and not key.startswith(_POOLER)]
    unfit = sorted([*missing, *(key for key, *_ in info["mismatched_keys"])])
    if unfit:
        named = ", ".join(unfit[:3])
        raise UserError(f"{directory}: the weights do not fit the encoder of config.json: {named} missing or misshapen")
    vocabularies = set(tokenizer.vocab_files_names.values())
    if vocabularies and not any((directory / name).is_file() for name in vocabularies):
        raise UserError(f"{directory}: no tokenizer here (none of {', '.join(sorted(vocabularies))})")
    if not {"input_ids", "attention_mask"} <= inspect.signature(model.forward).parameters.keys():
        raise UserError(f"{directory}: {type(model).__name__} is no text encoder (it takes no attention mask)")
