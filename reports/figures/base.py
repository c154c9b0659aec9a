"""What a figure module hands over, and which groups it draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from reports.groups import context
from reports.headings import Headings
from reports.tables import Line, Table

MOST = 6
"""Figures of one kind on a page; the section says how many groups it leaves out."""


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend.

    Args:
        label: what is drawn.
        place: its place among the methods, for colour and marker; for a swatch, its colour.
        swatch: a filled box in place of line and marker.
    """

    label: str
    place: int
    swatch: bool = False


@dataclass
class Drawing:
    """A figure and what the page says around it.

    Args:
        title: which cells it shows.
        figure: drawn, not yet SVG.
        keys: its legend.
        tips: texts at marks, by group id less ``tip-``.
        note: what a reader needs to know about this figure alone.
    """

    title: str
    figure: Figure
    keys: Sequence[Key]
    tips: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Scene:
    """Everything that a figure module draws from.

    Args:
        tables: the page's method tables, stale ones included.
        headings: names of groups.
    """

    tables: Sequence[Table]
    headings: Headings

    def key(self, line: Line) -> Key:
        """A method's legend entry."""
        return Key(line.label, self.place(line))

    def place(self, line: Line) -> int:
        """A method's place on the page."""
        return self.headings.labels.place(line.label)

    def fresh(self) -> list[Table]:
        """Tables that are not stale."""
        return [table for table in self.tables if not table.group.stale]


@dataclass(frozen=True)
class Choice:
    """Which tables a kind of figure shows.

    Args:
        tables: those drawn.
        other: fit for drawing, but one of another T or batch is drawn.
        beyond: left out for space.
    """

    tables: list[Table]
    other: int
    beyond: int

    @property
    def note(self) -> str:
        """What is not drawn, in a sentence; empty where all is."""
        parts = [f"{self.other} group(s) at another T or batch"] if self.other else []
        parts += [f"{self.beyond} further group(s), for space"] if self.beyond else []
        return f"Not drawn: {' and '.join(parts)}; their numbers are in the tables and records." if parts else ""


def choose(
    scene: Scene,
    usable: Callable[[Line], bool],
    least: int = 1,
    predicted: bool = False,
    prefer: Callable[[Table], bool] = lambda table: True,
) -> Choice:
    """The tables worth a figure: of each context the largest T and batch with enough usable rows.

    Args:
        scene: what the page has.
        usable: whether a row has what the figure draws.
        least: number of usable rows that a figure needs.
        predicted: also predicted groups, where the same cells were not measured.
        prefer: tables that go before others of their context, whatever their T and batch.
    """
    fit = [t for t in scene.fresh() if sum(map(usable, t.lines)) >= least and (predicted or not t.group.spec.predicted)]
    fit = _measured_first(fit)
    best: dict[object, Table] = {}
    for table in sorted(fit, key=lambda t: (prefer(t), t.group.spec.T, t.group.spec.batch)):
        best[context(table.group.record, "T", "batch"), table.group.normalisation] = table
    ranked = sorted(best.values(), key=lambda t: -sum(map(usable, t.lines)))
    kept = {id(table) for table in ranked[:MOST]}
    return Choice([t for t in fit if id(t) in kept], len(fit) - len(best), len(best) - len(kept))


def _measured_first(tables: list[Table]) -> list[Table]:
    """Drop predictions of what was measured as well."""
    kinds: dict[str, set[bool]] = defaultdict(set)
    for table in tables:
        kinds[context(table.group.record, "predicted")[0]].add(table.group.spec.predicted)
    return [
        t for t in tables if not (t.group.spec.predicted and False in kinds[context(t.group.record, "predicted")[0]])
    ]
