"""Live bytes through one training step."""

from __future__ import annotations

from collections.abc import Sequence

import seaborn as sns

from reports.cells import MIB
from reports.figures.base import Drawing, Scene, choose
from reports.figures.style import Mark, canvas, finish, tag
from reports.measures import memory_of
from reports.tables import Line, Table

PIXELS = 460
"""Columns of the panel; a timeline keeps two points in each, its lowest and highest."""


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """A figure for each group at its largest T and batch, and a note on the rest.

    Args:
        scene: what the page has.
    """
    choice = choose(scene, _usable, predicted=True)
    return [_one(scene, table) for table in choice.tables], choice.note


def _usable(line: Line) -> bool:
    item = line.row.first("memory")
    return item is not None and len(memory_of(item).timeline) > 1


def _one(scene: Scene, table: Table) -> Drawing:
    figure, (ax,) = canvas(width=7.6)
    lines = list(filter(_usable, table.lines))
    for line in lines:
        item = line.row.first("memory")
        assert item is not None
        events, counts = zip(*thin(memory_of(item).timeline, PIXELS), strict=True)
        mark, last = Mark(scene.place(line)), max(events[-1], 1)
        shares, mebibytes = [event / last for event in events], [count / MIB for count in counts]
        sns.lineplot(
            x=shares, y=mebibytes, ax=ax, estimator=None, sort=False, errorbar=None, color=mark.colour,
            linestyle=mark.dashes, linewidth=1.2, gid=tag(mark.place),
        )  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set_xlim(0, 1)
    finish(ax, "live bytes through one step", "share of the step's allocation events", "MiB")
    return Drawing(scene.headings.title(table.group), figure, [scene.key(line) for line in lines])


def thin(points: Sequence[tuple[int, int]], columns: int) -> list[tuple[int, int]]:
    """At most the first, lowest, highest and last point of each column, in order.

    Args:
        points: (event, live bytes), events ascending.
        columns: number of pixel columns that the events are spread over.
    """
    span = max(points[-1][0] - points[0][0], 1)
    kept: list[tuple[int, int]] = []
    column: list[tuple[int, int]] = []
    place = 0
    for point in points:
        here = (point[0] - points[0][0]) * columns // (span + 1)
        if here != place and column:
            kept += _extremes(column)
            column, place = [], here
        column.append(point)
    return kept + _extremes(column)


def _extremes(column: list[tuple[int, int]]) -> list[tuple[int, int]]:
    low, high = min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1])
    return sorted({column[0], low, high, column[-1]})
