"""The recipes that a recipe with stages stands for, and one mapping of keys laid over another."""

from __future__ import annotations

from typing import Any

from simcse_kit.train.recipe import Recipe


def stage_contents(recipe: Recipe) -> list[dict[str, Any]]:
    """The contents of the recipes that a recipe stands for: its own, or its stages' one after another.

    Every stage is the root with its own keys over it (lists whole), and starts from the best model of the stage before.
    The last one writes to ``output_dir``; stage i of the others to ``output_dir`` with ``-stage<i>`` behind it.
    """
    if not recipe.stages:
        return [recipe.model_dump()]
    root = recipe.model_dump(exclude={"stages"})
    last = len(recipe.stages)
    places = [f"{recipe.output_dir}-stage{number}" for number in range(1, last)] + [recipe.output_dir]
    contents = [merge(root, stage) | {"output_dir": place} for stage, place in zip(recipe.stages, places, strict=True)]
    for content, before in zip(contents[1:], places, strict=False):
        content["model"] = {**content["model"], "name": before, "new": None}
    return contents


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """The runs that a recipe stands for, of ``stage_contents``.

    Raises:
        ValidationError: If a stage's keys make no recipe.
    """
    return [Recipe.model_validate(content) for content in stage_contents(recipe)]


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``: mappings key by key, everything else whole."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
