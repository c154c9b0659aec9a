"""Plain tables for the page: heads, rows of cells, and an id."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reports.cells import Cell, absent
from reports.groups import Item


@dataclass(frozen=True)
class Head:
    """A column's heading.

    Args:
        title: shown.
        help: what it is; shown when pointed at.
        numeric: aligned to the right.
    """

    title: str
    help: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """A table.

    Args:
        id: unique on the page.
        heads: columns.
        rows: cells, as many as heads.
        title: of this table.
        details: a line below the title.
        note: a line below the table.
        facts: for the page's filters.
        badges: short warnings beside the title, with their explanation.
    """

    id: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    details: str = ""
    note: str = ""
    facts: Mapping[str, str | int] = field(default_factory=dict)
    badges: Mapping[str, str] = field(default_factory=dict)


def without_unasked(grid: Grid) -> Grid:
    """The table without the columns that no cell was to measure; the note below names them.

    Args:
        grid: a table with at least one row.
    """
    asked = [any(row[i].asked for row in grid.rows) for i in range(len(grid.heads))]
    hidden = [head.title for head, keep in zip(grid.heads, asked, strict=True) if not keep]
    if not hidden:
        return grid
    rows = [[cell for cell, keep in zip(row, asked, strict=True) if keep] for row in grid.rows]
    heads = [head for head, keep in zip(grid.heads, asked, strict=True) if keep]
    note = f"{grid.note} No cell here was to measure: {', '.join(hidden)}.".strip()
    return dataclasses.replace(grid, heads=heads, rows=rows, note=note)


def text(value: object, reason: str = "", item: Item | None = None) -> Cell:
    """A cell of words; None is a dash.

    Args:
        value: what to show.
        reason: why it is None.
        item: the record it comes from.
    """
    return absent(reason, item) if value is None else Cell(str(value), str(value), item=item)


def number(value: float | None, shown: str, reason: str = "", item: Item | None = None) -> Cell:
    """A cell with a number; None is a dash.

    Args:
        value: raw.
        shown: as text.
        reason: why it is None.
        item: the record it comes from.
    """
    return absent(reason, item) if value is None else Cell(value, shown, item=item)
