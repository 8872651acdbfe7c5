"""The papers' figures, as ``published.yaml`` holds them, and the rule by which one of ours may stand beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from eval.measured import Sheet, System
from simcse_kit.errors import UserError

FILE = Path(__file__).with_name("published.yaml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reproduction(_Entry):
    """How this project makes a row.

    Attributes:
        recipe: What simcse-train trains; None where it trains nothing, or where no recipe exists yet.
        commands: To be run from the project's root, in this order; none where no recipe exists yet.
        seeds: Those of the commands, else of the published figure, where known.
        hardware: What the commands are written for.
        hours: Of the commands on that hardware.
    """

    recipe: str | None
    commands: list[str]
    seeds: list[int]
    hardware: str
    hours: float | Literal["not measured"]


class Row(_Entry):
    """One row of a table of a paper.

    Attributes:
        id: Unique; our result for the row is the file of this name.
        system: As the paper names it.
        variant: The paper's column, where one row of the paper has several figures of one kind.
        backbone: The encoder.
        pooling: That of the published vectors, where the row is defined by it.
        figures: As printed, by task; ``Avg`` is the average.
        std: Standard deviations over seeds, by task.
        source: Key of the document; None: the table's.
        average_source: That of the average, where it is another one.
        notes: Keys of footnotes.
        reproduce: None where the project has no way to the row.
    """

    id: str = Field(pattern=r"^[a-z0-9.-]+$")
    system: str
    variant: str | None = None
    backbone: str | None = None
    pooling: str | None = None
    figures: dict[str, int | float]
    std: dict[str, float] = {}
    source: str | None = None
    average_source: str | None = None
    notes: list[str] = []
    reproduce: Reproduction | None = None


class PublishedProtocol(_Entry):
    """How a table's figures were measured; None is for what does not apply, and on a single set that is aggregation.

    ``n`` gives the number of pairs or test examples of each task; None where it is not known.
    """

    metric: str
    aggregation: str | None = None
    text: str | None = None
    split: str
    classifier: str | None = None
    n: dict[str, int | None]

    def differences(self, sheet: Sheet) -> list[str]:
        """In what the protocol of figures of ours is another one."""
        parts = ("metric", "aggregation", "text", "split", "classifier")
        found = [
            f"{part} {ours}, not {theirs}"
            for part in parts
            if (theirs := getattr(self, part)) is not None and (ours := getattr(sheet.protocol, part)) != theirs
        ]
        return found + [
            f"{task} over {figure.n}, not {self.n[task]}"
            for task, figure in sheet.figures.items()
            if self.n.get(task) is not None and figure.n != self.n[task]
        ]


class Table(_Entry):
    """One table of a paper.

    Attributes:
        title: Heading.
        about: What the table is about, in a sentence or two.
        source: Key of the document, for rows that name none of their own.
        decimals: To which figures are printed; None: as they are.
        protocol: None where the table holds settings or counts rather than figures of models.
        rows: In the paper's order.
    """

    title: str
    about: str
    source: str | None = None
    decimals: int | None = 2
    protocol: PublishedProtocol | None
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """The figures' names, in the order in which they appear."""
        return list(dict.fromkeys(column for row in self.rows for column in row.figures))


class Published(_Entry):
    """The whole file: the sources' and footnotes' texts by key, and the tables."""

    sources: dict[str, str]
    notes: dict[str, str]
    tables: dict[str, Table]

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """Every row with its table."""
        return ((table, row) for table in self.tables.values() for row in table.rows)


def read_published(path: Path = FILE) -> Published:
    """Read and validate the file."""
    return Published.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def comparable_sheet(row: Row, protocol: PublishedProtocol, system: System) -> Sheet:
    """Find the figures of ours that may stand beside a published row.

    Args:
        row: The row.
        protocol: Its table's.
        system: What the file of the row's name holds.

    Returns:
        The figures of the same protocol; not every task of the row need be there.

    Raises:
        UserError: If the file measures none of the row's tasks, or none by the row's protocol or pooling; the
            differences are named.
    """
    candidates = [sheet for sheet in system.sheets if protocol.n.keys() & sheet.figures.keys()]
    if not candidates:
        raise UserError(
            f"{system.file}: measures none of the tasks of the published row {row.id}: {', '.join(protocol.n)}"
        )
    pooling = system.models[0]["pooling"]
    other_pooling = [f"pooling {pooling}, not {row.pooling}"] if row.pooling not in (None, pooling) else []
    differences = [protocol.differences(sheet) + other_pooling for sheet in candidates]
    if all(differences):
        raise UserError(
            f"{system.file}: cannot be compared with the published row {row.id}: {'; '.join(differences[0])}; measure "
            "it by the row's protocol, or give the file a name of its own"
        )
    return candidates[differences.index([])]
