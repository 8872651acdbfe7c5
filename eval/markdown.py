"""What the tables of the reports share: titles of columns, Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eval.measured import AVERAGE

TITLES = {"STSB": "STS-B", "SICKR": "SICK-R", "SST2": "SST-2", AVERAGE: "Avg."}
"""How columns are headed, where not by their own name."""
DASH = "-"
"""Stands where there is no figure."""


def joined(blocks: Iterable[str]) -> str:
    """Blocks of Markdown with a blank line between them; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int) -> str:
    """A Markdown table; `text_columns` at the left are aligned left, the others right."""
    rule = ["---"] * text_columns + ["--:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
