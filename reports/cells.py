"""One number of a table: its raw value, its text, and where it comes from or why it is absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reports.groups import Block, Item, Row

DASH = "\u2013"
"""Shown for every value that is absent; its title says why."""
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Args:
        value: the raw value in the store's unit (bytes, seconds, fractions), None where absent.
        text: how it is shown.
        title: what a reader sees who points at it; the reason where the value is absent.
        item: the record that it comes from.
        marks: short warnings shown beside it, with their explanation.
        extra: further raw values for the machine-readable formats, by suffix of the column's key.
        links: further records behind it, each with a short name.
        asked: whether a cell was to measure this at all; a column that nobody asked for is not shown.
    """

    value: float | str | None
    text: str
    title: str = ""
    item: Item | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, float | int | str | None] = field(default_factory=dict)
    links: tuple[tuple[str, Item], ...] = ()
    asked: bool = True


def absent(reason: str, item: Item | None = None, asked: bool = True) -> Cell:
    """A dash with its reason.

    Args:
        reason: why there is no value.
        item: the record that says so.
        links: further records behind it, each with a short name.
        asked: whether a cell was to measure it.
    """
    return Cell(None, DASH, reason, item, asked=asked)


def missing(row: Row, block: Block) -> Cell:
    """A dash where no record of a row holds a block.

    Args:
        row: a method's records.
        block: name of a record's field.
    """
    return absent(row.why_absent(block), row.items[0], row.asks(block))


def mib(count: float) -> str:
    """Bytes as MiB (2**20 bytes), without the unit.

    >>> mib(123456789)
    '117.7'
    """
    return _plain(count / MIB)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, without the unit."""
    return _plain(seconds * 1e3)


def _plain(value: float) -> str:
    """About three significant digits, as many decimals for all values of a magnitude so that columns line up."""
    size = abs(value)
    if value == 0 or size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """A ratio with its multiplication sign."""
    return f"{ratio:.2f}\u00d7" if ratio < 100 else f"{ratio:.0f}\u00d7"


def percent(fraction: float) -> str:
    """A fraction as per cent, without the unit."""
    return f"{100 * fraction:.2f}"


def points(fraction: float) -> str:
    """A difference of fractions in percentage points, signed, without the unit."""
    text = f"{100 * fraction:+.2f}"
    return text.replace("-", "\u2212")


def science(value: float) -> str:
    """A small number with two significant digits; an exact zero stays ``0``."""
    return "0" if value == 0 else f"{value:.1e}"
