"""Memory against accuracy and against step time: who is beaten by nobody."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from reports.cells import MIB
from reports.figures.base import Drawing, Key, Scene, choose
from reports.figures.style import MUTED, Mark, canvas, finish
from reports.tables import Line, Table


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """A figure for each group at its largest T and batch with two or more methods, and a note on the rest.

    Args:
        scene: what the page has.
    """
    choice = choose(scene, _usable, least=2, prefer=lambda table: sum(map(_learned, table.lines)) >= 2)
    return [_one(scene, table) for table in choice.tables], choice.note


def _usable(line: Line) -> bool:
    second = line.cell("accuracy").value, line.cell("step_time_s").value
    return line.cell("peak_live_bytes").value is not None and second != (None, None)


def _learned(line: Line) -> bool:
    return line.cell("accuracy").value is not None


def _points(scene: Scene, table: Table) -> pd.DataFrame:
    lines = []
    for line in filter(_usable, table.lines):
        peak, accuracy, step = (line.cell(k).value for k in ("peak_live_bytes", "accuracy", "step_time_s"))
        lines.append({
            "label": line.label, "place": scene.place(line), "peak": float(peak or 0) / MIB,
            "accuracy": None if accuracy is None else 100 * float(accuracy),
            "half": _half(line), "step": None if step is None else 1e3 * float(step), "tip": _tip(line),
        })  # fmt: skip
    return pd.DataFrame(lines)


def _half(line: Line) -> float:
    """Half the accuracy's interval in per cent; 0 where there is none."""
    cell = line.cell("accuracy")
    low, high = cell.extra.get("low"), cell.extra.get("high")
    return 50 * (float(high) - float(low)) if low is not None and high is not None else 0.0


def _tip(line: Line) -> str:
    peak, step, accuracy = (line.cell(k).text for k in ("peak_live_bytes", "step_time_s", "accuracy"))
    return f"{line.label}: peak {peak} MiB, step {step} ms, accuracy {accuracy} %"


def _one(scene: Scene, table: Table) -> Drawing:
    points = _points(scene, table)
    panels = [("accuracy", "final test accuracy, %", True), ("step", "step time, ms", False)]
    panels = [panel for panel in panels if points[panel[0]].notna().sum() >= 2]
    figure, axes = canvas(max(1, len(panels)))
    tips: dict[str, str] = {}
    for ax, (key, name, upward) in zip(axes, panels, strict=False):
        _front(ax, points, key, upward)
        tips |= _dots(ax, points, key, len(tips))
        ax.margins(0.12)
        finish(ax, f"peak memory and {name.split(',')[0].removeprefix('final test ')}", "peak live bytes, MiB", name)
    keys = [Key(label, place) for label, place in zip(points["label"], points["place"], strict=True)]
    return Drawing(scene.headings.title(table.group), figure, keys, tips)


def _dots(ax: Axes, points: pd.DataFrame, key: str, before: int) -> dict[str, str]:
    tips = {}
    for number, (_, point) in enumerate(points[points[key].notna()].iterrows()):
        mark = Mark(point["place"])
        tip = f"{mark.place}-{before + number}"
        tips[tip] = point["tip"]
        if key == "accuracy" and point["half"]:
            ax.errorbar(point["peak"], point[key], point["half"], color=mark.colour, linewidth=1, capsize=2)
        sns.scatterplot(
            x=[point["peak"]], y=[point[key]], ax=ax, color=mark.colour, marker=mark.marker, s=55, linewidth=0,
            gid=f"tip-{tip}", zorder=3,
        )  # fmt: skip
    return tips


def _front(ax: Axes, points: pd.DataFrame, key: str, upward: bool) -> None:
    """A grey step line through the methods that no other beats in both."""
    held = points[points[key].notna()]
    best = front(list(zip(held["peak"], held[key], strict=True)), upward)
    if len(best) > 1:
        ax.step(*zip(*best, strict=True), where="post", color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)


def front(points: Sequence[tuple[float, float]], upward: bool) -> list[tuple[float, float]]:
    """The points that none beats: fewer bytes, and more (or less) of the other.

    Args:
        points: bytes and the other quantity.
        upward: whether more of the other is better.
    """
    sign = 1 if upward else -1
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best
