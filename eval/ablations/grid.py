"""Grids of ablations: a small YAML file each in ``grids/``, and the recipe of each of its rows.

A row is a recipe of ``recipes/`` with overrides as simcse-train takes them, so that every run of a grid can be repeated
by simcse-train alone. Later ones win: the grid's data, the budget that all rows share, then the row's own keys, since
they are what the row is about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simcse_kit.data.rows import did_you_mean
from simcse_kit.errors import UserError
from simcse_kit.train.recipe import Recipe
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.sections import PoolingName

FOLDER = Path(__file__).with_name("grids")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"

DataKind = Literal["text", "documents", "nli_pairs", "nli_triplets", "scored_pairs"]
"""What a row learns from."""

DATA: dict[DataKind, dict[str, Any]] = {
    "text": {"columns": ["text"], "convert": None},
    "documents": {"columns": ["text"], "convert": "next_sentence"},
    "nli_pairs": {"columns": ["premise", "hypothesis", "label"], "convert": "nli_pairs"},
    "nli_triplets": {"columns": ["sent0", "sent1", "hard_neg"], "convert": None},
    "scored_pairs": {"columns": ["text"], "convert": "scored_pairs"},
}
"""How a file of each kind is read, unless a row says otherwise: keys of a recipe's ``data``."""

OPTIONS: dict[DataKind, str] = {
    "text": "--text",
    "documents": "--documents",
    "nli_pairs": "--pairs",
    "nli_triplets": "--triplets",
    "scored_pairs": "--scored",
}
"""The command's option that names the file of each kind."""

# What the command itself says of every run.
_FIXED = re.compile(r"(seed|output_dir|extends|model\.name|(data|evaluation\.(data|task|split|text))(\..*)?)=")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridRow(_Entry):
    """One row of a grid.

    Attributes:
        name: As the table shows it.
        set: Overrides of the recipe by their dotted key; ``{model}`` in one stands for the backbone.
        recipe: The recipe's file name without ``.yaml``; None: the grid's.
        data: What it learns from; None: the grid's.
        published: Id of the row of ``published.yaml`` that it stands beside.
    """

    name: str
    set: dict[str, Any] = {}
    recipe: str | None = None
    data: DataKind | None = None
    published: str | None = None

    @property
    def slug(self) -> str:
        """The name as part of a folder's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


class Grid(_Entry):
    """A grid.

    Attributes:
        title: Heading of its table.
        about: What the table shows, in a sentence or two.
        recipe: Of the rows that name none.
        data: Of the rows that name none.
        rows: In the order of the table.
        reference: The row that the others are compared with; None: the first one.
        pooling: In which all rows are measured, where that is not the pooling they are trained with.
        untrained: Ids of published rows of the untrained backbone, by pooling.
    """

    title: str
    about: str
    recipe: str
    data: DataKind
    rows: Annotated[list[GridRow], Field(min_length=2)]
    reference: str | None = None
    pooling: PoolingName | None = None
    untrained: dict[PoolingName, str] = {}

    @property
    def reference_row(self) -> GridRow:
        """The row that the others are compared with."""
        return next(row for row in self.rows if self.reference in (None, row.name))

    def data_of(self, row: GridRow) -> DataKind:
        """What a row learns from."""
        return row.data or self.data

    @model_validator(mode="after")
    def _names_tell_rows_apart(self) -> Self:
        slugs = [row.slug for row in self.rows]
        twice = sorted({slug for slug in slugs if slugs.count(slug) > 1})
        if twice:
            raise ValueError(f"rows: several would lie in the folder {twice[0]!r}; name them differently")
        if self.reference is not None and self.reference not in [row.name for row in self.rows]:
            raise ValueError(f"reference: no row is named {self.reference!r}")
        return self


@dataclass(frozen=True)
class Common:
    """What all runs have in common.

    Attributes:
        model: The backbone.
        files: The training file of each kind of data, as a recipe's ``data.train`` takes it.
        sts: Folder of STS-B, in SentEval's layout.
        sts_text: STS-B as SentEval tokenises it (``disk``), or ``raw``.
        budget: Overrides, ``key.path=value`` each.
        rows_seen: Training rows that each run sees; None: as the recipe and the budget say.
    """

    model: str
    files: Mapping[DataKind, str]
    sts: Path
    sts_text: str
    budget: Sequence[str] = ()
    rows_seen: int | None = None

    def __post_init__(self) -> None:
        """Refuse what the command itself says of every run.

        Raises:
            UserError: If the budget has such a key.
        """
        for override in self.budget:
            if _FIXED.match(override):
                raise UserError(f"--set {override}: the other options say what this key is; leave it out")


def read_grid(name: str) -> tuple[str, Grid]:
    """Read a grid.

    Args:
        name: Of a file in ``grids/`` without ``.yaml``, or the path of a file of one's own with it.

    Returns:
        Its name, and the grid.

    Raises:
        UserError: If there is no such grid, or it is not as it should be; every mistake is named.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise UserError(f"no grid {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    try:
        return path.stem, Grid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{path}: {'; '.join(mistakes)}") from None


def training_files(
    text: str | None, documents: str | None, pairs: str | None, triplets: str | None, scored: str | None
) -> dict[DataKind, str]:
    """The training files that were given, by what they hold; each argument is that of the option of its name."""
    given = dict(zip(DATA, (text, documents, pairs, triplets, scored), strict=True))
    return {kind: file for kind, file in given.items() if file is not None}


def check_files(grids: Mapping[str, Grid], files: Mapping[DataKind, str]) -> None:
    """See that there is a file for every kind of data that the grids' rows learn from.

    Raises:
        UserError: If one is missing; the option and the rows are named.
    """
    for kind, option in OPTIONS.items():
        rows = [f"{name}: {row.name}" for name, grid in grids.items() for row in grid.rows if grid.data_of(row) == kind]
        if rows and kind not in files:
            raise UserError(f"{option} FILE is missing; needed by the rows {'; '.join(rows)}")


def recipe_of(grid: Grid, row: GridRow, common: Common, *, seed: int, output_dir: Path) -> Recipe:
    """The recipe of a row's run.

    Raises:
        UserError: If the row's and the budget's keys make no recipe; every mistake is named.
    """
    kind = grid.data_of(row)
    data = {"train": common.files[kind], **DATA[kind]}
    evaluation = {"data": str(common.sts), "task": "STSB", "split": "dev", "text": common.sts_text}
    fixed = {"model.name": common.model, "seed": seed, "output_dir": str(output_dir)}
    overrides = [
        *_overrides({f"data.{key}": value for key, value in data.items()}),
        *common.budget,
        *(override.replace("{model}", common.model) for override in _overrides(row.set)),
        *_overrides({f"evaluation.{key}": value for key, value in evaluation.items()} | fixed),
    ]
    path = RECIPES / f"{row.recipe or grid.recipe}.yaml"
    try:
        recipe = load_recipe(path, overrides)
        if common.rows_seen is None:
            return recipe
        steps = math.ceil(common.rows_seen / recipe.train.batch_size)
        return load_recipe(path, [*overrides, f"train.max_steps={steps}"])
    except UserError as error:
        raise UserError(f"row {row.name!r}: {error}") from None


def _overrides(keys: Mapping[str, Any]) -> list[str]:
    """Overrides as simcse-train takes them."""
    return [f"{key}={_in_yaml(value)}" for key, value in keys.items()]


def _in_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
