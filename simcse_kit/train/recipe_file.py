"""Reading a recipe: YAML, what it extends, overrides, and every error at once with its key."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from simcse_kit.augment.embedding import EMBEDDING_AUGMENTATIONS, Adversarial
from simcse_kit.errors import UserError
from simcse_kit.objectives.settings import SECTIONS, TOKEN_SECTIONS
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.stages import merge, stage_contents


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
        content = merge(base, content)
    content.setdefault("objectives", [{}])
    content.setdefault("data", {})
    for override in overrides or []:
        _apply(content, override)
    if "extends" in content:
        raise UserError(f"{path}: extends cannot be overridden; run the other recipe")
    recipe = _validated(content, f"{path}: ")
    if recipe.stages:
        for number, stage in enumerate(stage_contents(recipe)):
            _validated(stage, f"{path}: stages.{number}.")
    return recipe


def _validated(content: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        mistakes = [line for item in error.errors() for line in _describe(item).splitlines()]
        raise UserError("\n".join(f"{where}{mistake}" for mistake in mistakes)) from None


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
    loc, kind, message = item["loc"], item["type"], item["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for place, part in enumerate(loc) if not _is_union_tag(loc, place))
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key; {_advice(str(loc[-1]), _known_keys(loc[:-1]))}"
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in item["ctx"]["expected_tags"].split(",")]
        return f"{where}.name: {item['ctx']['tag']!r} is unknown; {_advice(item['ctx']['tag'], known)}"
    if kind in ("missing", "missing_keyword_only_argument"):
        return f"{where}: missing"
    if kind == "union_tag_not_found":
        return f"{where}.name: missing"
    if kind == "model_type":
        return f"{where}: keys belong below it (got {item['input']!r})"
    if kind == "value_error":
        return f"{where}.{message}" if where else message
    return f"{where}: {message} (got {item['input']!r})"


def _advice(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"


def _is_union_tag(loc: tuple[str | int, ...], place: int) -> bool:
    """Whether a part of pydantic's path names one of several types and is not a key."""
    part, before = loc[place], loc[max(place - 2, 0) : place]
    if isinstance(part, int):
        return False
    of_section = (len(before) == 2 and before[0] == "objectives") or before[-1:] == ("embedding",)
    return of_section or "[" in part or part in ("str", "int", "float", "bool", "none")


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that a section of the recipe knows."""
    if path[:1] == ("objectives",):
        return list({**SECTIONS, **TOKEN_SECTIONS}[str(path[2])].model_fields)
    if "embedding" in path:
        kinds: dict[str, Any] = {**EMBEDDING_AUGMENTATIONS, Adversarial.name: Adversarial}
        return [field.name for field in dataclasses.fields(kinds[str(path[-1])])]
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
