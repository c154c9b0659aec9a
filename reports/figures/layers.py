"""Error of the gradient against BPTT's, parameter by parameter."""

from __future__ import annotations

import math

import seaborn as sns
from matplotlib.axes import Axes

from harness.record import Fidelity
from reports.figures.base import Drawing, Key, Scene, choose
from reports.figures.style import MUTED, Mark, canvas, finish, plain, tag
from reports.measures import fidelity_at
from reports.tables import Line, Table

NAMES = 40
"""Parameters whose names fit under the axis; with more, only some are named."""


def draw(scene: Scene) -> tuple[list[Drawing], str]:
    """A figure for each group at its largest T and batch, and a note on the rest.

    Args:
        scene: what the page has.
    """
    choice = choose(scene, lambda line: bool(_errors(line)))
    return [_one(scene, table) for table in choice.tables], choice.note


def _initial(line: Line) -> Fidelity | None:
    found = fidelity_at(line.row, "initial")
    return found[1] if found else None


def _errors(line: Line) -> dict[str, float]:
    """Relative L2 error by parameter where it is above zero."""
    fidelity = _initial(line)
    layers = fidelity.layers if fidelity else []
    return {layer.name: layer.relative_l2 for layer in layers if layer.relative_l2}


def _one(scene: Scene, table: Table) -> Drawing:
    drawn = [line for line in table.lines if _errors(line)]
    names = list(dict.fromkeys(name for line in drawn for name in _order(line)))
    figure, (ax,) = canvas(width=7.6, height=3.6)
    for line in drawn:
        mark, errors = Mark(scene.place(line)), _errors(line)
        sns.lineplot(
            x=range(len(names)), y=[errors.get(name, math.nan) for name in names], ax=ax, estimator=None, errorbar=None,
            color=mark.colour, marker=mark.marker, linestyle=mark.dashes, linewidth=1, markeredgewidth=0,
            gid=tag(mark.place),
        )  # fmt: skip
    tolerance = max(fidelity.tolerance for line in drawn if (fidelity := _initial(line)))
    ax.axhline(tolerance, color=MUTED, linestyle=(0, (4, 2)), linewidth=1)
    ax.set_yscale("log")
    _name(ax, names)
    finish(ax, "gradient error by parameter, at initialisation", "", "relative L2 error")
    zero = [line.label for line in table.lines if _initial(line) and not _errors(line)]
    note = f"Dashed: the tolerance of an exact method, {tolerance:.0e}. A missing mark is an error of exactly zero."
    note += f" Zero everywhere, hence not drawn: {', '.join(zero)}." if zero else ""
    keys = [Key(line.label, scene.place(line)) for line in drawn]
    return Drawing(scene.headings.title(table.group), figure, keys, note=note)


def _order(line: Line) -> list[str]:
    fidelity = _initial(line)
    return [layer.name for layer in fidelity.layers] if fidelity else []


def _name(ax: Axes, names: list[str]) -> None:
    every = math.ceil(len(names) / NAMES)
    places = range(0, len(names), every)
    ax.set_xticks(places, [plain(names[i]) for i in places], rotation=90, fontsize=7)
