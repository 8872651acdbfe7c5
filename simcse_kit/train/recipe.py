"""The recipe: one YAML file, validated whole before anything runs.

The keys, their meaning and their defaults are the fields of the models below. Unknown keys are refused with a
suggestion, and all errors are reported at once with their path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simcse_kit.errors import UserError

PoolingName = Literal["cls", "cls_pooler", "mean", "max", "mask", "last2_mean", "first_last_mean", "first_last_mean_h0"]
_TEST_IN_NAME = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which encoder is trained, and how its vectors are made.

    ``max_length`` is that of training; the saved model takes texts as long as its backbone does.
    """

    name: str
    pooling: PoolingName = "cls"
    head: Literal["none", "mlp"] = "mlp"
    keep_head: bool = False
    dropout: Rate | None = None
    max_length: Annotated[int, Field(ge=3)] = 32
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _head_exists(self) -> Self:
        if self.keep_head and self.head == "none":
            raise ValueError("keep_head: there is no head to keep (model.head is none)")
        return self


class DataSection(_Section):
    """The training text: one column gives two views of each text, two anchor and positive, three a hard negative too.

    ``convert: nli_triplets`` turns labelled NLI pairs (columns premise, hypothesis, label) into triplets.
    """

    train: str | list[str]
    columns: Annotated[list[str], Field(min_length=1, max_length=3)] = ["text"]
    convert: Literal["nli_triplets"] | None = None
    shuffle: bool = True

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: {self.columns} names one column twice")
        if self.convert == "nli_triplets" and len(self.columns) != 3:
            raise ValueError("convert: nli_triplets needs three columns: [premise, hypothesis, label]")
        return self


class ObjectiveSection(_Section):
    """One objective and its weight in the sum."""

    name: Literal["info_nce"] = "info_nce"
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 0.05
    hard_negative_weight: float = 0.0


class TrainSection(_Section):
    """How it is trained. ``chunk_size`` and a second encoder are keys of the format that take their defaults only."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    chunk_size: None = None
    encoders: Literal[1] = 1
    epochs: Annotated[float, Field(gt=0.0)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(ge=0.0)] = 3e-5
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_ratio: Rate = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    drop_last: bool = False
    log_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] | None = None
    keep_last: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None


class EvaluationSection(_Section):
    """What chooses the best model: Spearman on an STS set, every so many optimiser steps and at the end.

    A model chosen on a test split has no test figure any more, so one is refused unless ``allow_test`` is set, which
    run.json then records.
    """

    data: str | None = None
    task: str = "STSB"
    split: str = "dev"
    text: Literal["disk", "raw"] = "disk"
    every: Annotated[int, Field(ge=0)] = 125
    allow_test: bool = False

    @property
    def on_test(self) -> bool:
        """Whether the set is a test split, by the recipe's word, the hub's, or the name of a file."""
        if self.data is None:
            return False
        source, _, hub_split = self.data.rpartition(":")
        if source.startswith("hub:"):
            return hub_split == "test"
        file = Path(self.data)
        return self.split == "test" or (file.suffix != "" and _TEST_IN_NAME.search(file.name) is not None)

    @model_validator(mode="after")
    def _selects_on_dev(self) -> Self:
        if self.on_test and not self.allow_test:
            raise ValueError(
                f"data: {self.data} ({self.split}) is a test split, on which no model should be chosen; name a dev "
                "split, or set evaluation.allow_test (recorded in run.json)"
            )
        return self


class ReportSection(_Section):
    """What is measured before and after training, shown, and never used to choose a model."""

    data: str
    task: str = "STSB"
    split: str = "test"
    text: Literal["disk", "raw"] = "disk"
    neighbours: Annotated[int, Field(ge=0)] = 0


class Recipe(_Section):
    """One training run."""

    model: ModelSection
    data: DataSection
    views: Annotated[list[Any], Field(max_length=0)] = []
    objectives: Annotated[list[ObjectiveSection], Field(min_length=1)] = [ObjectiveSection()]
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    report: ReportSection | None = None
    stages: Annotated[list[Any], Field(max_length=0)] = []
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    output_dir: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        names = [objective.name for objective in self.objectives]
        rules = {
            "objectives: each may be named once": len(set(names)) < len(names),
            "objectives: a hard_negative_weight needs a third column in data.columns": len(self.data.columns) < 3
            and any(objective.hard_negative_weight for objective in self.objectives),
            "train.patience: nothing would be evaluated (evaluation.data is null)": self.train.patience is not None
            and self.evaluation.data is None,
        }
        broken = [rule for rule, is_broken in rules.items() if is_broken]
        if broken:
            raise ValueError("\n".join(broken))
        return self


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, with what it extends, apply overrides and validate all of it.

    Args:
        path: A YAML file. Its key ``extends`` names another one, relative to it, that its own keys override.
        overrides: ``key.path=value`` each, the value in YAML; list items by index.

    Raises:
        UserError: With every error found, a line each, each with its key.
    """
    path = Path(path)
    content = _read_yaml(path)
    parent = content.pop("extends", None)
    if parent is not None:
        base = _read_yaml(path.parent / str(parent))
        if base.pop("extends", None) is not None:
            raise UserError(f"{path}: extends {parent}, which itself extends a recipe; one level is the most")
        content = _merge(base, content)
    content.setdefault("objectives", [{}])
    content.setdefault("data", {})
    for override in overrides or []:
        _apply(content, override)
    if "extends" in content:
        raise UserError(f"{path}: extends cannot be overridden; run the other recipe")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        mistakes = [line for item in error.errors() for line in _describe(item).splitlines()]
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in mistakes)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is named twice is an error; by itself the library keeps the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({_problem(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys (model, data, train, ...), this is not one")
    return content


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, without the excerpt that would take further lines."""
    return getattr(error, "problem", None) or str(error)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``: mappings key by key, everything else whole."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]):
        raise UserError(f"override {override!r}: expected key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML ({_problem(error)})") from None
    place: Any = content
    try:
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise UserError(f"override {override!r}: the recipe has no such place") from None


def _describe(item: Any) -> str:
    """One error of pydantic's in our words."""
    where = ".".join(str(part) for part in item["loc"] if not _is_union_tag(part))
    kind, message = item["type"], item["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {advice}"
    if kind == "missing":
        return f"{where}: missing"
    if kind == "model_type":
        return f"{where}: keys belong below it (got {item['input']!r})"
    if item["loc"] in (("views",), ("stages",)):
        return f"{where}: this version takes the default only: []"
    if kind == "value_error":
        return f"{where}.{message}" if where else message
    return f"{where}: {message} (got {item['input']!r})"


def _is_union_tag(part: str | int) -> bool:
    """Whether a part of pydantic's path names a type of a union and not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float", "none") or "[" in part)


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that a section of the recipe knows."""
    section: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        section = next(kind for kind in _types_in(annotation) if issubclass(kind, BaseModel))
    return [*section.model_fields, *(["extends"] if section is Recipe else [])]


def _types_in(annotation: Any) -> list[type]:
    """The classes named anywhere in an annotation."""
    inner = [found for argument in get_args(annotation) for found in _types_in(argument)]
    return [annotation, *inner] if isinstance(annotation, type) else inner
