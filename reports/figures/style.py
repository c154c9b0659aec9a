"""How figures look: sizes, theme colours, and one colour, marker and dash pattern for each method.

Colours are drawn as stand-ins that :mod:`reports.figures.svg` replaces with the page's CSS variables, so that one SVG
serves the light and the dark theme.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
"""Stand-in colours and the CSS variables that replace them."""
SERIES_PREFIX = "#0a0b"
"""A series' stand-in is this and its place as two hexadecimal digits; its variable is ``--c`` and place modulo 10."""
COLOURS = 10
"""Number of series colours in style.css."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)))
WIDTH = 4.6
"""Width of one panel in inches of 100 CSS pixels."""
HEIGHT = 2.9

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snnbench",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Mark:
    """How a method is drawn.

    Args:
        place: its place among the page's methods.
    """

    place: int

    @property
    def colour(self) -> str:
        """Stand-in colour."""
        return f"{SERIES_PREFIX}{self.place % 256:02x}"

    @property
    def marker(self) -> str:
        """Matplotlib marker."""
        return MARKERS[self.place % len(MARKERS)]

    @property
    def dashes(self) -> Any:
        """Line style; changes where the colours begin again."""
        return DASHES[self.place // COLOURS % len(DASHES)]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the page's style; leaves matplotlib's settings as they were."""
    settings: Any = {**sns.axes_style("ticks"), **_RC}
    with mpl.rc_context(settings):
        yield


def canvas(
    columns: int = 1, width: float = WIDTH, height: float = HEIGHT, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with panels, and these row by row.

    Args:
        columns: number of panels in a row.
        width: of one panel, inches.
        height: of one panel, inches.
        rows: number of rows.
        options: for ``Figure.subplots``.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasSVG(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes:
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    return figure, axes


def finish(ax: Axes, title: str, x: str, y: str) -> None:
    """Title and axis labels; no frame on top and right."""
    ax.set_title(title, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    sns.despine(ax=ax)


def plain(label: str) -> str:
    """A label that matplotlib shows as it is: a dollar sign would begin a formula."""
    return label.replace("$", r"\$")


def tag(place: int) -> str:
    """Group id that :mod:`reports.figures.svg` turns into the class ``s<place>``, for the legend to switch."""
    return f"series-{place}"
