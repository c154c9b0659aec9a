"""What the peak consists of: stacked bars by kind of bytes, and by the module that allocated them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from reports.cells import MIB, mib
from reports.figures.base import Drawing, Key, Scene, choose
from reports.figures.style import MUTED, PAPER, Mark, canvas, finish, plain
from reports.measures import memory_of
from reports.tables import Line, Table

NAMED = 9
"""Modules with a colour of their own; the rest is one grey segment."""
REST = "all other"
KINDS = ("parameters", "gradients", "optimizer", "buffers", "inputs", "activations", "temporaries")

Bars = dict[str, Mapping[str, int]]
"""Bytes by segment, by method."""


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """Two figures for each group at its largest T and batch, and a note on the rest.

    Args:
        scene: what the page has.
    """
    choice = choose(scene, _usable, predicted=True)
    return [
        drawing for table in choice.tables for drawing in (_kinds(scene, table), _modules(scene, table))
    ], choice.note


def _usable(line: Line) -> bool:
    item = line.row.first("memory")
    return item is not None and memory_of(item).split is not None


def _kinds(scene: Scene, table: Table) -> Drawing:
    bars: Bars = {}
    for line in filter(_usable, table.lines):
        item = line.row.first("memory")
        split = memory_of(item).split if item else None
        bars[line.label] = split.model_dump() if split else {}
    return _stack(scene.headings.title(table.group), "the peak by kind of bytes", bars, KINDS)


def _modules(scene: Scene, table: Table) -> Drawing:
    counts: dict[str, Counter[str]] = {}
    for line in filter(_usable, table.lines):
        item = line.row.first("memory")
        counts[line.label] = Counter()
        for entry in memory_of(item).by_module if item else ():
            counts[line.label][entry.module or "(no module)"] += entry.bytes
    named = largest(list(counts.values()), NAMED)
    bars: Bars = {label: fold(count, named) for label, count in counts.items()}
    return _stack(scene.headings.title(table.group), "bytes at the peak by the module that allocated them", bars,
                  [*named, REST])  # fmt: skip


def largest(counts: Sequence[Mapping[str, int]], most: int) -> list[str]:
    """Names with the most bytes in any one bar, in their order of appearance.

    Args:
        counts: bytes by name, a mapping a bar.
        most: how many names.
    """
    top: Counter[str] = Counter()
    for count in counts:
        for name, value in count.items():
            top[name] = max(top[name], value)
    chosen = {name for name, _ in top.most_common(most)}
    return [name for name in top if name in chosen]


def fold(count: Mapping[str, int], named: Sequence[str]) -> dict[str, int]:
    """Bytes by name, all names but ``named`` added up under :data:`REST`."""
    folded = {name: count.get(name, 0) for name in named}
    folded[REST] = sum(value for name, value in count.items() if name not in folded)
    return folded


def _stack(title: str, what: str, bars: Bars, segments: Sequence[str]) -> Drawing:
    figure, (ax,) = canvas(width=7.6, height=0.9 + 0.3 * len(bars))
    tips: dict[str, str] = {}
    shown = [name for name in segments if any(bar.get(name) for bar in bars.values())]
    for place, (label, bar) in enumerate(bars.items()):
        tips |= _bar(ax, place, label, [(name, bar.get(name, 0), _colour(name, segments)) for name in shown])
    ax.set_yticks(range(len(bars)), [plain(label) for label in bars])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.tick_params(axis="y", length=0)
    finish(ax, what, "MiB", "")
    keys = [Key(name, -1 if name == REST else segments.index(name), swatch=True) for name in shown]
    return Drawing(title, figure, keys, tips)


def _bar(ax: Axes, place: int, label: str, parts: Sequence[tuple[str, int, str]]) -> dict[str, str]:
    tips, left = {}, 0.0
    for number, (name, count, colour) in enumerate(parts):
        if count:
            key = f"{place}-{number}"
            tips[key] = f"{label}, {name}: {mib(count)} MiB"
            segment = ax.barh(place, count / MIB, left=left, height=0.7, color=colour, edgecolor=PAPER, linewidth=0.4)
            segment[0].set_gid(f"tip-{key}")
            left += count / MIB
    return tips


def _colour(name: str, segments: Sequence[str]) -> str:
    return MUTED if name == REST else Mark(segments.index(name)).colour
