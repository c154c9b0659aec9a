"""Bytes and accuracy over a numeric option of a method: subnetworks of STDL, groups of the reversible node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from reports.cells import MIB
from reports.figures import published
from reports.figures.base import MOST, Drawing, Key, Scene
from reports.figures.scaling import scale
from reports.figures.style import MUTED, Mark, canvas, finish, tag
from reports.tables import Line, Table

LEAST = 3
"""Values of an option that make a curve."""
PANELS = (
    ("peak_live_bytes", "peak live bytes", "MiB", 1 / MIB),
    ("peak_less", "baseline's peak / this peak", "times less", 1.0),
    ("accuracy", "final test accuracy", "%", 100.0),
)
"""Key of the tables' column, title, unit, and what a value is multiplied by."""


@dataclass(frozen=True)
class Sweep:
    """Rows of one table that differ in one numeric option of one method.

    Args:
        table: the comparison.
        method: its name.
        option: what runs.
        lines: value and row, ascending.
    """

    table: Table
    method: str
    option: str
    lines: Sequence[tuple[float, Line]]

    @property
    def name(self) -> str:
        """The method, with those of its other options in which rows of the page differ."""
        head, _, rest = self.lines[0][1].label.partition("(")
        kept = [word for word in rest.removesuffix(")").split(", ") if word and not word.startswith(f"{self.option}=")]
        return f"{head}({', '.join(kept)})" if kept else head

    @property
    def base(self) -> Line | None:
        """The baseline's row."""
        name = self.lines[0][1].row.spec.baseline
        return next((line for line in self.table.lines if line.row.spec.method.name == name), None)


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """A figure for each method and table in which a numeric option takes three or more values, and what is left out.

    Args:
        scene: what the page has.
    """
    sweeps = [sweep for table in scene.fresh() for sweep in _sweeps(table)]
    sweeps.sort(key=lambda sweep: (sweep.table.group.spec.predicted, -len(sweep.lines)))
    note = f"Not drawn, for space: {len(sweeps) - MOST} further comparisons." if len(sweeps) > MOST else ""
    return [_one(scene, sweep) for sweep in sweeps[:MOST]], note


def _sweeps(table: Table) -> list[Sweep]:
    found: dict[tuple[str, str, str], dict[float, Line]] = defaultdict(dict)
    for line in table.lines:
        options = line.row.spec.method.options
        for name, value in options.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and _any(line):
                found[line.row.spec.method.name, name, _rest(options, name)][value] = line
    return [
        Sweep(table, method, option, sorted(lines.items(), key=lambda pair: pair[0]))
        for (method, option, _), lines in found.items()
        if len(lines) >= LEAST
    ]


def _rest(options: Mapping[str, Any], name: str) -> str:
    return repr(sorted((key, value) for key, value in options.items() if key != name))


def _any(line: Line) -> bool:
    return any(line.cell(key).value is not None for key, *_ in PANELS)


def _one(scene: Scene, sweep: Sweep) -> Drawing:
    panels = [panel for panel in PANELS if sum(line.cell(panel[0]).value is not None for _, line in sweep.lines) > 1]
    figure, axes = canvas(len(panels), width=3.7)
    mark, base = Mark(scene.place(sweep.lines[0][1])), sweep.base
    for ax, (key, title, unit, factor) in zip(axes, panels, strict=True):
        held = [(value, line) for value, line in sweep.lines if line.cell(key).value is not None]
        xs, ys = [value for value, _ in held], [factor * float(line.cell(key).value or 0) for _, line in held]
        halves = [factor * _half(line, key) for _, line in held]
        if any(halves):
            ax.errorbar(xs, ys, halves, color=mark.colour, linewidth=1, capsize=2, linestyle="none")
        ax.plot(xs, ys, color=mark.colour, marker=mark.marker, gid=tag(mark.place), markeredgewidth=0)
        scale(ax, [int(x) for x in xs])
        level = _baseline(ax, base, key, factor)
        ends = [y + sign * h for y, h in zip(ys, halves, strict=True) for sign in (-1, 1)] + [
            v for v in (level,) if v is not None
        ]
        if key == "peak_less":
            claims = published.of_ratio([line for _, line in held], "memory_less")
            published.draw(ax, claims)
            ends += [claim.value for claim in claims]
        _limits(ax, key, ends)
        finish(ax, title, f"{sweep.method}: {sweep.option}", unit)
    keys = [Key(sweep.name, mark.place)]
    dashed = "" if base is None else f" The dashed line is {base.label}."
    spread = " Bars are 95 % t-intervals over seeds." if any(panel[0] == "accuracy" for panel in panels) else ""
    title = scene.headings.title(sweep.table.group)
    return Drawing(f"{sweep.name} over {sweep.option} \u00b7 {title}", figure, keys, note=(dashed + spread).strip())


def _half(line: Line, key: str) -> float:
    """Half of an interval over seeds; 0 where there is none."""
    extra = line.cell(key).extra
    low, high = extra.get("low"), extra.get("high")
    return (float(high) - float(low)) / 2 if key == "accuracy" and low is not None and high is not None else 0.0


def _limits(ax: Axes, key: str, ends: Sequence[float]) -> None:
    """Bytes and their ratios from zero; accuracies as far as they reach."""
    if key == "accuracy":
        ax.set_ylim(max(0.0, min(ends) - 2), min(100.0, max(ends) + 2))
    else:
        ax.set_ylim(0, 1.1 * max(ends))


def _baseline(ax: Axes, base: Line | None, key: str, factor: float) -> float | None:
    """A dashed line where the baseline is; its level."""
    value = None if base is None else base.cell(key).value
    if value is None:
        return None
    ax.axhline(factor * float(value), color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    return factor * float(value)
