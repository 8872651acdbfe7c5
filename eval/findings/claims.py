"""The papers' findings as data: ``findings.yaml``, and what the papers print for the rows that a finding compares."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eval.ablations.grid import Grid, read_grid
from eval.measured import AVERAGE
from eval.published import Published
from simcse_kit.train.sections import PoolingName

FILE = Path(__file__).with_name("findings.yaml")
UNTRAINED = "untrained"
"""Stands for a grid's name before encoders that are not trained."""

FigureName = Literal["test", "sts7", "alignment", "uniformity"]
"""Attributes of ``eval.ablations.results.Scores``."""

_COLUMNS: dict[FigureName, str] = {"test": "STSB", "sts7": AVERAGE}


class Place(NamedTuple):
    """Where a row is: its grid (or ``UNTRAINED``), and its name there."""

    grid: str
    row: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Take GRID/ROW apart; a row's own name may have slashes."""
        grid, _, row = text.partition("/")
        return cls(grid, row)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class UntrainedEncoder(_Entry):
    """The backbone as it is, in a pooling; `whitened` on NLI sentences; `published` is the id of a published row."""

    pooling: PoolingName
    whitened: bool = False
    published: str | None = None


class Finding(_Entry):
    """One finding: every row of `above` has a higher figure than every row of `below`.

    Attributes:
        claim: In a sentence.
        source: Paper and table.
        figure: What is compared; of alignment and uniformity, lower is better.
        above: Rows, GRID/ROW each.
        below: Rows; with those above they are of one grid, or untrained.
    """

    claim: str
    source: str
    figure: FigureName
    above: Annotated[list[str], Field(min_length=1)]
    below: Annotated[list[str], Field(min_length=1)]

    @cached_property
    def pairs(self) -> list[tuple[Place, Place]]:
        """What is compared: a row above with a row below."""
        return [(Place.parse(above), Place.parse(below)) for above in self.above for below in self.below]

    @property
    def grids(self) -> set[str]:
        """The grid that the rows are of; none where no row is trained."""
        return {place.grid for pair in self.pairs for place in pair} - {UNTRAINED}

    @model_validator(mode="after")
    def _is_of_one_grid(self) -> Self:
        if len(self.grids) > 1:
            raise ValueError(f"rows of {', '.join(sorted(self.grids))}: their budgets may differ; compare within one")
        return self


class Findings(_Entry):
    """The whole file: the encoders that are not trained, by name, and the findings in the order of the report."""

    untrained: dict[str, UntrainedEncoder]
    findings: list[Finding]

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """The grids of the findings, in the order in which these name them."""
        return dict(read_grid(name) for finding in self.findings for name in sorted(finding.grids))

    def published_id(self, place: Place) -> str | None:
        """The published row beside which a row stands.

        Raises:
            KeyError: If there is no such row.
        """
        if place.grid == UNTRAINED:
            return self.untrained[place.row].published
        return {row.name: row.published for row in self.grids[place.grid].rows}[place.row]


def read_findings(path: Path = FILE) -> Findings:
    """Read and validate the file."""
    return Findings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def published_difference(
    findings: Findings, published: Published, above: Place, below: Place, figure: FigureName
) -> float | None:
    """What the papers print for a row less what they print for another; x100.

    Returns:
        None where a figure is not published, or the two were measured by different protocols.
    """
    rows: Mapping[str, tuple[object, Mapping[str, float]]] = {
        row.id: (table.protocol and table.protocol.model_dump(exclude={"n"}), row.figures)
        for table, row in published.rows()
    }
    names = [findings.published_id(place) for place in (above, below)]
    column = _COLUMNS.get(figure)
    if None in names or column is None:
        return None
    (one_way, first), (other_way, second) = (rows[str(name)] for name in names)
    if one_way != other_way or column not in first or column not in second:
        return None
    return first[column] - second[column]
