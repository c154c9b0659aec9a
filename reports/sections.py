"""Sections of the page; here those that hold figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from reports.figures import curves, layers, modules, options, pareto, scaling, timeline
from reports.figures.base import Drawing, Key, Scene
from reports.figures.style import styled
from reports.figures.svg import inline
from reports.view import Grid


@dataclass(frozen=True)
class Figure:
    """A figure on the page.

    Args:
        title: which cells it shows.
        svg: the drawing.
        keys: legend.
        note: what to know about it.
    """

    title: str
    svg: Markup
    keys: Sequence[Key]
    note: str


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: its anchor.
        title: its heading.
        intro: what the numbers are.
        grids: tables.
        figures: drawings.
        note: what is left out.
        empty: what to say when there is neither table row nor figure.
    """

    id: str
    title: str
    intro: str = ""
    grids: Sequence[Grid] = ()
    figures: Sequence[Figure] = ()
    note: str = ""
    empty: str = ""

    @property
    def bare(self) -> bool:
        """Whether there is nothing to show."""
        return not self.figures and not any(grid.rows for grid in self.grids)


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Args:
        id: of its section.
        title: of its section.
        intro: what is drawn and how to read it.
        draw: makes the figures, and a sentence on what it leaves out.
        empty: what to say when there is nothing to draw.
    """

    id: str
    title: str
    intro: str
    draw: Callable[[Scene], tuple[list[Drawing], str]]
    empty: str


KINDS = (
    Kind("over-t", "Memory over T", "Bytes of one training step as the number of time steps grows, the rest the same; "
         "below, how many times less than the baseline's, and dotted what a paper claims of that ratio.",
         partial(scaling.draw, axis="T"), "No method was measured at two or more values of T."),
    Kind("over-batch", "Memory over batch", "Bytes of one training step as the batch grows, the rest the same; below, how "
         "many times less than the baseline's, and dotted what a paper claims of that ratio.",
         partial(scaling.draw, axis="batch"), "No method was measured at two or more batch sizes."),
    Kind("options", "Over a method's option", "One method with one of its numbers changed, the rest the same: what the "
         "option costs and brings.", options.draw, "No method was measured at three or more values of an option."),
    Kind("pareto", "Memory, accuracy, speed", "Left and up is better for accuracy, left and down for time. The dashed "
         "line joins the methods that no other beats in both; bars are 95 % t-intervals over seeds.", pareto.draw,
         "No group has two methods with bytes and either accuracy or time."),
    Kind("timeline", "Memory through one step", "Live tensor bytes at every allocation and release of one settled "
         "step: forward, backward, optimizer.", timeline.draw, "No record holds a timeline."),
    Kind("modules", "Bytes at the peak", "What is live at the worst instant of the step. Most gradients may not exist "
         "there yet.", modules.draw, "No record holds a peak."),
    Kind("fidelity", "Gradient error by parameter", "Each parameter's gradient against BPTT's on the same weights and "
         "batch.", layers.draw, "No record holds a gradient error above zero."),
    Kind("training", "Training curves", "Mean over seeds; bands are 95 % t-intervals. The final epoch counts, never "
         "the best.", curves.draw, "Nothing was trained."),
)  # fmt: skip


def figure_sections(scene: Scene) -> list[Section]:
    """The sections that hold figures.

    Args:
        scene: what they draw from.
    """
    found = []
    with styled():
        for kind in KINDS:
            drawings, note = kind.draw(scene)
            figures = [_figure(f"{kind.id}-{i}-", kind.title, drawing) for i, drawing in enumerate(drawings)]
            found.append(Section(kind.id, kind.title, kind.intro, figures=figures, note=note, empty=kind.empty))
    return found


def _figure(prefix: str, section: str, drawing: Drawing) -> Figure:
    svg = inline(drawing.figure, prefix, f"{section}: {drawing.title}", drawing.tips)
    return Figure(drawing.title, Markup(svg), drawing.keys, drawing.note)
