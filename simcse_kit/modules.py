"""The sentence-transformers directory: what its modules say about a model, and how ours is written as one.

Every pooling is written with modules that sentence-transformers ships, so that nobody needs this package to open a
model: averages of layers through ``WeightedLayerPooling``, ``mask`` through ``WordWeights`` (weight 1 for the mask
token, 0 for the others, then a mean), ``cls_pooler`` and a kept head through ``Dense``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simcse_kit.errors import UserError
from simcse_kit.pooling import POOLINGS

_WEIGHTS = "model.safetensors"
_NAMESPACE = "sentence_transformers."
_PLAIN_POOLINGS = ("cls", "mean", "max")
_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}


class Dense(nn.Module):
    """A linear layer and an activation on pooled vectors: [B, D] -> [B, D'].

    With ``Tanh`` this is the MLP head of SimCSE and the shape of BERT's pooler.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, activation: str = "Tanh") -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_name = activation
        self.activation = _ACTIVATIONS[activation]()

    @classmethod
    def head(cls, width: int) -> Dense:
        """A fresh SimCSE head: weights from N(0, 0.02), bias 0 (never BERT's pooler; SimCSE paper, footnote 9)."""
        dense = cls(width, width)
        nn.init.normal_(dense.linear.weight, std=0.02)
        nn.init.zeros_(dense.linear.bias)
        return dense

    @property
    def is_mlp(self) -> bool:
        """Whether this layer has the shape of SimCSE's head: square, with tanh."""
        return self.activation_name == "Tanh" and self.linear.in_features == self.linear.out_features

    def forward(self, vectors: Tensor) -> Tensor:
        """Project vectors: [B, D] -> [B, D']."""
        projected: Tensor = self.activation(self.linear(vectors))
        return projected


@dataclass
class Layout:
    """What stands around the backbone.

    Attributes:
        pooling: A name in ``POOLINGS``.
        dense: Layers behind the pooling, in order.
        normalize: Whether vectors are brought to unit length at the end.
        max_length: Tokens a text is cut to, special ones included; None: as the tokenizer says.
        lower_case: Whether texts are lower-cased before the tokenizer's own rules.
        transformer: The folder of the backbone and the tokenizer, relative to the model's.
    """

    pooling: str
    dense: list[Dense] = field(default_factory=list)
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    transformer: str = ""


def read_layout(directory: Path, *, allow_pickle: bool = False) -> Layout | None:
    """Read the modules of a sentence-transformers directory.

    Returns:
        The layout, or None where the directory has no ``modules.json`` (a plain transformers checkpoint).

    Raises:
        UserError: If a module, or an option of one, is not supported; it is named.
    """
    if not (directory / "modules.json").is_file():
        return None
    layout: Layout | None = None
    reweighting: tuple[str, Path] | None = None
    for entry in sorted(read_json(directory / "modules.json"), key=lambda entry: entry["idx"]):
        kind, folder = entry["type"].rpartition(".")[2], directory / entry["path"]
        after_pooling = layout is not None and layout.pooling != ""
        if not entry["type"].startswith(_NAMESPACE):
            raise _unsupported(directory, entry["type"])
        if kind == "Transformer" and layout is None:
            layout = _read_transformer(directory, entry["path"])
        elif layout is None or layout.normalize:
            raise _unsupported(directory, f"{kind} at position {entry['idx']}")
        elif kind in ("WeightedLayerPooling", "WordWeights") and not after_pooling:
            reweighting = (kind, folder)
        elif kind == "Pooling" and not after_pooling:
            layout.pooling = _read_pooling(folder, reweighting)
        elif kind == "Dense" and after_pooling:
            layout.dense.append(_read_dense(folder, allow_pickle=allow_pickle))
        elif kind == "Normalize" and after_pooling:
            layout.normalize = True
        else:
            raise _unsupported(directory, kind)
    if layout is None or not layout.pooling:
        raise UserError(f"{directory / 'modules.json'}: names no Transformer and Pooling module")
    _refuse_default_prompt(directory)
    return layout


def write_layout(
    directory: Path, layout: Layout, *, width: int, num_layers: int, vocabulary: int, mask_token: int | None
) -> None:
    """Write ``modules.json`` and the folder of each module behind the backbone.

    Args:
        directory: The model's folder; the backbone and the tokenizer lie in it.
        layout: What to write; ``cls_pooler`` must have been written out as ``cls`` and a Dense layer.
        width: Width of the backbone, D.
        num_layers: Layers of the backbone, L.
        vocabulary: Number of token ids.
        mask_token: Id of the mask token, needed for pooling ``mask`` alone.
    """
    modules: list[tuple[str, Path]] = []

    def add(kind: str, config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        folder = directory / f"{len(modules) + 1}_{kind}"
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", config)
        if weights:
            save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
        modules.append((kind, folder))

    pooling = POOLINGS[layout.pooling]
    if len(pooling.layers) > 1:
        layer_weights = {"layer_weights": torch.tensor(pooling.layer_weights(num_layers))}
        shape = {"embedding_dimension": width, "layer_start": 0, "num_hidden_layers": num_layers}
        add("WeightedLayerPooling", shape, layer_weights)
    if layout.pooling == "mask":
        words = [str(token) for token in range(vocabulary)]
        add("WordWeights", {"vocab": words, "word_weights": {str(mask_token): 1.0}, "unknown_word_weight": 0.0})
    mode = layout.pooling if layout.pooling in _PLAIN_POOLINGS else "mean"
    modes = {key: name == mode for name, key in _POOLING_KEYS.items()}
    add("Pooling", {"word_embedding_dimension": width, **modes, "pooling_mode_mean_sqrt_len_tokens": False})
    for dense in layout.dense:
        linear = dense.linear
        identity = dense.activation_name == "Identity"
        config = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": f"torch.nn.modules.{'linear' if identity else 'activation'}.{dense.activation_name}",
        }
        add("Dense", config, {f"linear.{name}": value for name, value in linear.state_dict().items()})
    if layout.normalize:
        add("Normalize", {})
    entries = [("Transformer", directory), *modules]
    write_json(
        directory / "modules.json",
        [
            {
                "idx": idx,
                "name": str(idx),
                "path": "" if folder == directory else folder.name,
                "type": f"{_NAMESPACE}models.{kind}",
            }
            for idx, (kind, folder) in enumerate(entries)
        ],
    )
    limits = {"max_seq_length": layout.max_length, "do_lower_case": layout.lower_case}
    write_json(directory / "sentence_bert_config.json", limits)


def read_json(path: Path) -> Any:
    """Read a JSON file of a model.

    Raises:
        UserError: If it is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing, so this is no complete model") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented, in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_transformer(directory: Path, folder: str) -> Layout:
    config_file = directory / folder / "sentence_bert_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    return Layout(
        pooling="",
        max_length=config.get("max_seq_length"),
        lower_case=bool(config.get("do_lower_case", False)),
        transformer=folder,
    )


def _read_pooling(folder: Path, reweighting: tuple[str, Path] | None) -> str:
    config = read_json(folder / "config.json")
    modes = [name for name, key in _POOLING_KEYS.items() if config.get(key)]
    others = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode", modes[0] if len(modes) == len(others) == 1 else others)
    if mode not in _PLAIN_POOLINGS or not config.get("include_prompt", True):
        raise UserError(f"{folder}: pooling {mode!r} is not supported; supported: {', '.join(_PLAIN_POOLINGS)}")
    if reweighting is None:
        return str(mode)
    kind, source = reweighting
    names = _mask_pooling(source) if kind == "WordWeights" else _layer_poolings(source)
    if mode != "mean" or not names:
        raise UserError(f"{source}: {kind} with other weights than those of our own poolings is not supported")
    return names[0]


def _mask_pooling(folder: Path) -> list[str]:
    config = read_json(folder / "config.json")
    one_token = len(config["word_weights"]) == 1 and config["unknown_word_weight"] == 0
    return ["mask"] if one_token else []


def _layer_poolings(folder: Path) -> list[str]:
    config, (weights,) = read_json(folder / "config.json"), load_file(folder / _WEIGHTS).values()
    return [
        name
        for name, pooling in POOLINGS.items()
        if len(pooling.layers) > 1
        and pooling.layer_weights(config["num_hidden_layers"])[config["layer_start"] :] == weights.tolist()
    ]


def _read_dense(folder: Path, *, allow_pickle: bool) -> Dense:
    config = read_json(folder / "config.json")
    activation = config.get("activation_function", "Tanh").rpartition(".")[2]
    source = config.get("module_input_name", "sentence_embedding")
    if activation not in _ACTIVATIONS or config.get("use_residual") or source != "sentence_embedding":
        raise UserError(f"{folder}: a Dense module with options that are not supported: {config}")
    dense = Dense(config["in_features"], config["out_features"], bias=config.get("bias", True), activation=activation)
    if (folder / _WEIGHTS).is_file():
        dense.load_state_dict(load_file(folder / _WEIGHTS))
    elif allow_pickle:
        dense.load_state_dict(torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True))
    else:
        raise UserError(f"{folder}: has no {_WEIGHTS}; pickled weights are opened only with allow_pickle=True")
    return dense


def _refuse_default_prompt(directory: Path) -> None:
    config_file = directory / "config_sentence_transformers.json"
    prompt = read_json(config_file).get("default_prompt_name") if config_file.is_file() else None
    if prompt:
        raise UserError(f"{config_file}: the model's default prompt {prompt!r} is not supported; set it to null")


def _unsupported(directory: Path, kind: str) -> UserError:
    return UserError(
        f"{directory / 'modules.json'}: module {kind} is not supported; supported are Transformer, Pooling, Dense, "
        "Normalize (and what this package itself writes), in this order"
    )
