"""Bytes over T or over batch, a line a method, and below them how many times less than the baseline's.

What failed is a cross at the upper edge; what a paper claims of such a ratio is a dotted line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from reports.cells import MIB
from reports.figures import published
from reports.figures.base import MOST, Drawing, Key, Scene
from reports.figures.style import Mark, canvas, finish, tag
from reports.groups import Item, context
from reports.measures import byte_ratio
from reports.tables import Line, Table, where_failed

Axis = Literal["T", "batch"]
PANELS = (("peak_live_bytes", "peak live bytes"), ("saved_bytes", "bytes saved by the forward"))
RATIOS = (
    ("peak_less", "baseline's peak / this peak", "memory_less"),
    ("saved_less", "baseline's saved / these", "node_memory_less"),
)
"""Below each panel of bytes: the point's key, the title, and the claims' metric that it is drawn with."""
NAMES: dict[Axis, str] = {"T": "time steps T", "batch": "batch size"}
saved_less = byte_ratio("saved_bytes")


def draw(scene: Scene, axis: Axis) -> tuple[list[Drawing], str]:
    """Figures of every context in which ``axis`` takes two or more values, and a note on what is left out.

    Args:
        scene: what the page has.
        axis: what the figures run over.
    """
    series: dict[object, list[Table]] = defaultdict(list)
    for table in scene.fresh():
        series[context(table.group.record, axis), table.group.normalisation].append(table)
    runs = [tables for tables in series.values() if len({getattr(t.group.spec, axis) for t in tables}) > 1]
    runs = [tables for tables in runs if _points(scene, tables, axis)["peak_live_bytes"].notna().any()]
    # Those that run over most values first: where space ends, they tell most.
    runs.sort(key=lambda tables: -len({getattr(t.group.spec, axis) for t in tables}))
    note = f"Not drawn, for space: {len(runs) - MOST} further contexts." if len(runs) > MOST else ""
    return [_one(scene, tables, axis) for tables in runs[:MOST]], note


def _points(scene: Scene, tables: list[Table], axis: Axis) -> pd.DataFrame:
    """One line a method and value: bytes, their ratio to the baseline's, and how the memory phase failed."""
    lines = []
    for table in tables:
        for line in table.lines:
            failed = line.row.first("memory") is None and line.row.status not in ("ok", "unsupported", "unavailable")
            where = f"{line.row.status} in {': '.join(where_failed(_worst(line)))}" if failed else None
            point = {
                axis: getattr(table.group.spec, axis),
                "label": line.label,
                "place": scene.place(line),
                "failed": where,
            }
            for key, _ in PANELS:
                value = line.cell(key).value
                point[key] = value / MIB if isinstance(value, (int, float)) else None
            if line.row.spec.method.name != line.row.spec.baseline:
                point["peak_less"] = line.cell("peak_less").value
                point["saved_less"] = saved_less(table.group, line.row).value
            lines.append(point)
    return pd.DataFrame(lines, columns=[axis, "label", "place", "failed", *(key for key, *_ in (*PANELS, *RATIOS))])


def _worst(line: Line) -> Item:
    """The record that gave a row its status."""
    return next(item for item in line.row.items if item.record.status == line.row.status)


def _one(scene: Scene, tables: list[Table], axis: Axis) -> Drawing:
    points = _points(scene, tables, axis)
    points = points[points["peak_live_bytes"].notna() | points["failed"].notna()]
    ratios = [each for each in RATIOS if points[each[0]].notna().any()]
    figure, axes = canvas(len(PANELS), rows=2 if ratios else 1)
    tips: dict[str, str] = {}
    values = sorted(points[axis].unique())
    for ax, (key, name) in zip(axes, PANELS, strict=False):
        _lines(ax, points, axis, key)
        tips |= _crosses(ax, points, axis, len(tips))
        scale(ax, values)
        finish(ax, name, NAMES[axis], "MiB")
    lines = [line for table in tables for line in table.lines]
    for ax, (key, name, metric) in zip(axes[len(PANELS) :], ratios, strict=False):
        _lines(ax, points, axis, key)
        published.draw(ax, published.of_ratio(lines, metric))
        scale(ax, values)
        finish(ax, name, NAMES[axis], "times less")
    for ax in axes[len(PANELS) + len(ratios) :]:
        ax.set_visible(False)
    keys = [Key(label, place) for label, place in sorted(set(zip(points["label"], points["place"], strict=True)))]
    return Drawing(
        scene.headings.title(tables[0].group, without=(axis,)), figure, keys, tips, _note(lines, tips, ratios)
    )


def _note(lines: Sequence[Line], tips: dict[str, str], ratios: Sequence[object]) -> str:
    said = []
    if ratios:
        bases = sorted({line.row.spec.baseline for line in lines})
        said.append(f"Ratios against {' or '.join(bases)}, as in the tables.")
    if tips:
        said.append("A cross at the upper edge is a cell that failed; point at it for the reason.")
    return " ".join(said)


def _lines(ax: Axes, points: pd.DataFrame, axis: Axis, key: str) -> None:
    for place in sorted(set(points["place"].tolist())):
        method, mark = points[points[key].notna() & (points["place"] == place)], Mark(place)
        if method.empty:
            continue
        sns.lineplot(
            method.astype({key: float}), x=axis, y=key, ax=ax, errorbar=None, color=mark.colour, marker=mark.marker,
            linestyle=mark.dashes, gid=tag(place), markeredgewidth=0,
        )  # fmt: skip


def _crosses(ax: Axes, points: pd.DataFrame, axis: Axis, before: int) -> dict[str, str]:
    """Failed cells, one below the other where several share a place."""
    tips: dict[str, str] = {}
    failed = points[points["failed"].notna()]
    for value in sorted(set(failed[axis].tolist())):
        for depth, (_, point) in enumerate(failed[failed[axis] == value].iterrows()):
            key = f"{point['place']}-{before + len(tips)}"
            tips[key] = f"{point['label']} at {axis} = {value}: {point['failed']}"
            height = max(0.05, 0.96 - 0.07 * depth)
            ax.plot(
                [value], [height], marker="X", markersize=8, color=Mark(point["place"]).colour, linestyle="none",
                transform=ax.get_xaxis_transform(), gid=f"tip-{key}", clip_on=False,
            )  # fmt: skip
    return tips


def scale(ax: Axes, values: Sequence[int]) -> None:
    """Powers of two evenly spaced, a tick at every measured value, bytes from zero.

    Args:
        ax: a panel.
        values: what was measured.
    """
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom=0)
