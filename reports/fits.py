"""The largest T and the largest batch whose training step fits into a card's memory, read off peaks at several sizes.

Between two sizes the peak is interpolated linearly (a step's bytes are a constant and a part per time step and sample,
so the error is small); beyond the largest size nothing is said but that it still fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from reports.cells import Cell
from reports.groups import Item, context
from reports.headings import Headings
from reports.measures import memory_of
from reports.tables import Line, Table
from reports.view import Grid, Head, text

GIB = 2**30
CARDS = (8, 24, 80)
"""Memory of common cards in GiB."""
LEAST = 3
"""Sizes that a row needs."""
Axis = Literal["T", "batch"]


def fits(tables: Sequence[Table], headings: Headings) -> Grid:
    """One row for each method, network and axis with peaks at :data:`LEAST` or more sizes.

    Args:
        tables: the page's method tables.
        headings: names of groups.
    """
    heads = [Head("method"), Head("of"), Head("largest"), Head("at sizes")]
    heads += [Head(f"in {card} GiB", f"largest with a peak of at most {card} GiB", numeric=True) for card in CARDS]
    rows = [row for axis in ("T", "batch") for row in _rows(tables, headings, axis)]
    return Grid("fits", heads, rows)


def _rows(tables: Sequence[Table], headings: Headings, axis: Axis) -> Iterator[list[Cell]]:
    series: dict[object, list[tuple[Table, Line]]] = defaultdict(list)
    for table in tables:
        for line in table.lines:
            if not table.group.stale and line.row.first("memory") is not None:
                series[context(table.group.record, axis), table.group.normalisation, line.label].append((table, line))
    for found in series.values():
        items = {getattr(table.group.spec, axis): line.row.first("memory") for table, line in found}
        peaks = {size: peak for size, item in items.items() if item and (peak := memory_of(item).peak_live_bytes)}
        if len(peaks) >= LEAST:
            table, line = found[0]
            yield [
                text(line.label), text(headings.title(table.group, without=(axis,))), text(axis),
                text(", ".join(map(str, sorted(peaks)))), *(_cell(peaks, items, card) for card in CARDS),
            ]  # fmt: skip


def _cell(peaks: Mapping[int, int], items: Mapping[int, Item | None], card: int) -> Cell:
    size, exact = largest(peaks, card * GIB)
    if size == 0:
        return Cell(0, f"< {min(peaks)}", f"the smallest size, {min(peaks)}, does not fit", items[min(peaks)])
    below = max(known for known in peaks if known <= size)
    if size == max(peaks):
        return Cell(size, f"\u2265 {size}", "the largest size that was looked at still fits", items[below])
    why = "looked at" if exact else "interpolated between the sizes that were looked at"
    return Cell(size, str(size), why, items[below])


def largest(peaks: Mapping[int, int], limit: int) -> tuple[int, bool]:
    """The largest size with a peak of at most ``limit`` bytes, and whether it is one of those given.

    Args:
        peaks: bytes by size; two or more.
        limit: bytes.

    Returns:
        0 where the smallest size does not fit.
    """
    sizes = sorted(peaks)
    fitting = [size for size in sizes if peaks[size] <= limit]
    if not fitting:
        return 0, True
    below = fitting[-1]
    place = bisect_right(sizes, below)
    if place == len(sizes):
        return below, True
    above = sizes[place]
    share = (limit - peaks[below]) / (peaks[above] - peaks[below])
    size = below + int(share * (above - below))
    return size, size == below
