"""The sentence-transformers directory: what its modules say about a model, and how ours is written as one.

Every pooling is written with modules that sentence-transformers ships, so that nobody needs this package to open a
model: averages of layers through ``WeightedLayerPooling``, ``mask`` through ``WordWeights`` (weight 1 for the mask
token, 0 for the others, then a mean), ``cls_pooler`` and a kept head through ``Dense``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from simcse_kit.errors import UserError, one_line
from simcse_kit.locate import weight_files
from simcse_kit.pooling import POOLINGS

_WEIGHTS = "model.safetensors"
_CONFIG = "config_sentence_transformers.json"
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
        self.activation = _ACTIVATIONS[activation]()

    @classmethod
    def head(cls, width: int) -> Dense:
        """A fresh SimCSE head: weights from N(0, 0.02), bias 0 (never BERT's pooler; SimCSE paper, footnote 9)."""
        dense = cls(width, width)
        nn.init.normal_(dense.linear.weight, std=0.02)
        nn.init.zeros_(dense.linear.bias)
        return dense

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Dense:
        """A copy of a linear layer, with tanh behind it (so of a backbone's own pooler)."""
        dense = cls(linear.in_features, linear.out_features)
        dense.linear.load_state_dict(linear.state_dict())
        return dense

    @property
    def is_mlp(self) -> bool:
        """Whether this layer has the shape of SimCSE's head: square, with tanh."""
        return isinstance(self.activation, nn.Tanh) and self.linear.in_features == self.linear.out_features

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
        prompts: What sentence-transformers puts before a text on demand, by name; not used here, but kept.
        similarity: What sentence-transformers compares the vectors by; the same.
        weight_files: The files that the dense layers were read from.
        pooler: The dense layer that was recognised as the checkpoint's own pooler.
    """

    pooling: str
    dense: list[Dense] = field(default_factory=list)
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    transformer: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    similarity: str = "cosine"
    weight_files: list[Path] = field(default_factory=list)
    pooler: Dense | None = None

    def recognise_pooler(self, pooler: nn.Linear) -> None:
        """Name ``cls`` and a dense layer that equals the checkpoint's own pooler what they are: ``cls_pooler``."""
        if self.pooling == "cls" and self.dense and self.dense[0].is_mlp:
            own, ours = pooler.state_dict(), self.dense[0].linear.state_dict()
            if own.keys() == ours.keys() and all(torch.equal(ours[key].to(own[key].dtype), own[key]) for key in own):
                self.pooling = "cls_pooler"
                self.pooler = self.dense.pop(0)


def read_layout(directory: Path, *, allow_pickle: bool = False) -> Layout | None:
    """Read the modules of a sentence-transformers directory.

    Returns:
        The layout, or None where the directory has no ``modules.json`` (a plain transformers checkpoint).

    Raises:
        UserError: If a module, or an option of one, is not supported; it is named.
    """
    if not (directory / "modules.json").is_file():
        return None
    try:
        layout = _read_modules(directory, allow_pickle=allow_pickle)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{directory}: its sentence-transformers modules are malformed ({told})") from error
    _read_conventions(directory, layout)
    return layout


def write_layout(directory: Path, layout: Layout, config: PreTrainedConfig, mask_token: int | None) -> None:
    """Write ``modules.json`` and the folder of each module behind the backbone.

    Args:
        directory: The model's folder; the backbone and the tokenizer lie in it.
        layout: What to write; ``cls_pooler`` must have been written out as ``cls`` and a Dense layer.
        config: The backbone's.
        mask_token: Id of the mask token, needed for pooling ``mask`` alone.
    """
    folders = [("Transformer", "")]
    for kind, settings, weights in _modules_behind(layout, config, mask_token):
        name = f"{len(folders)}_{kind}"
        (directory / name).mkdir(exist_ok=True)
        write_json(directory / name / "config.json", settings)
        if weights:
            save_file(weights, directory / name / _WEIGHTS)
        folders.append((kind, name))
    write_json(
        directory / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": name, "type": f"{_NAMESPACE}models.{kind}"}
            for idx, (kind, name) in enumerate(folders)
        ],
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": layout.max_length, "do_lower_case": False})
    conventions = {"prompts": layout.prompts, "default_prompt_name": None, "similarity_fn_name": layout.similarity}
    write_json(directory / _CONFIG, {"model_type": "SentenceTransformer", **conventions})


def _modules_behind(
    layout: Layout, config: PreTrainedConfig, mask_token: int | None
) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """Kind, configuration and weights of each module behind the backbone."""
    pooling, width, num_layers = POOLINGS[layout.pooling], config.hidden_size, config.num_hidden_layers
    if len(pooling.layers) > 1:
        shape = {"embedding_dimension": width, "layer_start": 0, "num_hidden_layers": num_layers}
        yield "WeightedLayerPooling", shape, {"layer_weights": torch.tensor(pooling.layer_weights(num_layers))}
    if layout.pooling == "mask":
        words = [str(token) for token in range(config.vocab_size)]
        yield "WordWeights", {"vocab": words, "word_weights": {str(mask_token): 1.0}, "unknown_word_weight": 0.0}, {}
    mode = layout.pooling if layout.pooling in _PLAIN_POOLINGS else "mean"
    modes = {key: name == mode for name, key in _POOLING_KEYS.items()}
    yield "Pooling", {"word_embedding_dimension": width, **modes, "pooling_mode_mean_sqrt_len_tokens": False}, {}
    for dense in layout.dense:
        linear, activation = dense.linear, type(dense.activation)
        settings = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
        }
        yield "Dense", settings, dense.state_dict()
    if layout.normalize:
        yield "Normalize", {}, {}


def read_json(path: Path) -> Any:
    """Read a JSON file of a model.

    Raises:
        UserError: If it cannot be read, or is malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), so this is no complete model") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented, in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_modules(directory: Path, *, allow_pickle: bool) -> Layout:
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
        elif kind in ("WeightedLayerPooling", "WordWeights") and not after_pooling and reweighting is None:
            reweighting = (kind, folder)
        elif kind == "Pooling" and not after_pooling:
            layout.pooling = _read_pooling(folder, reweighting)
        elif kind == "Dense" and after_pooling:
            dense, file = _read_dense(folder, allow_pickle=allow_pickle)
            layout.dense.append(dense)
            layout.weight_files.append(file)
        elif kind == "Normalize" and after_pooling:
            layout.normalize = True
        else:
            raise _unsupported(directory, kind)
    if layout is None or not layout.pooling:
        raise UserError(f"{directory / 'modules.json'}: names no Transformer and Pooling module")
    return layout


def _read_transformer(directory: Path, folder: str) -> Layout:
    # Older versions put the model's family into the file's name.
    config_file = next((directory / folder).glob("sentence_*_config.json"), None)
    config = read_json(config_file) if config_file else {}
    defaults = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    changed = [key for key, value in defaults.items() if config.get(key, value) != value]
    if changed or config.get("processing_kwargs"):
        named = ", ".join(changed or ["processing_kwargs"])
        raise UserError(f"{config_file}: a Transformer module with options that are not supported: {named}")
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
    if mode not in _PLAIN_POOLINGS:
        raise UserError(f"{folder}: pooling {mode!r} is not supported; supported: {', '.join(_PLAIN_POOLINGS)}")
    if not config.get("include_prompt", True):
        raise UserError(f"{folder}: pooling without the prompt (include_prompt false) is not supported")
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


def _read_dense(folder: Path, *, allow_pickle: bool) -> tuple[Dense, Path]:
    """The layer, and the file its weights are in."""
    config = read_json(folder / "config.json")
    library, _, activation = config.get("activation_function", "torch.nn.Tanh").rpartition(".")
    ends = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    options = {
        f"activation {library}.{activation}": not library.startswith("torch.nn") or activation not in _ACTIVATIONS,
        "a residual connection": config.get("use_residual", False),
        f"input or output {'/'.join(sorted(ends))}": ends != {"sentence_embedding"},
    }
    if any(options.values()):
        named = ", ".join(option for option, present in options.items() if present)
        raise UserError(f"{folder}: a Dense module with {named} is not supported")
    dense = Dense(config["in_features"], config["out_features"], bias=config.get("bias", True), activation=activation)
    safe, pickled = weight_files(folder), weight_files(folder, pickled=True)
    if safe:
        dense.load_state_dict(load_file(safe[0]))
    elif pickled and allow_pickle:
        dense.load_state_dict(torch.load(pickled[0], map_location="cpu", weights_only=True))
    else:
        raise UserError(f"{folder}: has no {_WEIGHTS}; pickled weights are opened only with allow_pickle=True")
    return dense, (safe or pickled)[0]


def _read_conventions(directory: Path, layout: Layout) -> None:
    """Add to a layout what sentence-transformers is to do with the model beyond its modules.

    Raises:
        UserError: If every text is to have a prompt.
    """
    config_file = directory / _CONFIG
    config = read_json(config_file) if config_file.is_file() else {}
    layout.prompts = config.get("prompts") or {}
    layout.similarity = config.get("similarity_fn_name") or layout.similarity
    name = config.get("default_prompt_name")
    if name and layout.prompts.get(name):
        raise UserError(f"{config_file}: the model's default prompt {name!r} is not supported; set it to null")


def _unsupported(directory: Path, kind: str) -> UserError:
    return UserError(
        f"{directory / 'modules.json'}: module {kind} is not supported; supported are Transformer, Pooling, Dense, "
        "Normalize (and what this package itself writes), in this order"
    )
