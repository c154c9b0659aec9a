"""In short: which method wins what, each answer read off the one comparison group that can tell most about it.

Numbers of different groups are never pooled: a median over comparisons that not every method took part in would rank
the comparisons, not the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.stats import EQUIVALENCE_MARGIN
from reports.cells import Cell, mib, milliseconds
from reports.headings import Headings
from reports.tables import COLUMNS, Line, Table
from reports.view import Grid, Head, text, without_unasked

SHOWN = (
    "peak_live_bytes", "peak_less", "step_time_s", "time_longer", "accuracy", "accuracy_difference", "gradient",
)  # fmt: skip
"""Columns of the method table that stand beside an answer."""
LEAST = 3
"""Methods that a group must compare before one of them is called the best."""


@dataclass(frozen=True)
class Question:
    """What a reader wants least of.

    Args:
        title: the question.
        help: who takes part.
        key: of the column whose smallest value answers it.
        needs: of further columns that a method must have a value in to take part.
        admits: whether a method takes part.
        shown: the runner-up's number as text, with its unit.
    """

    title: str
    help: str
    key: str
    needs: tuple[str, ...]
    admits: Callable[[Line], bool]
    shown: Callable[[float], str]


def _same_gradient(line: Line) -> bool:
    promises = line.row.promises
    kept = line.cell("promise").value != "broken"
    return (promises.get("gradient"), promises.get("model"), promises.get("numerics")) == (
        "exact",
        "same",
        "same",
    ) and kept


def _as_accurate(line: Line) -> bool:
    """Paired per-seed differences whose interval stays above the margin, or the baseline itself."""
    if line.row.spec.method.name == line.row.spec.baseline:
        return True
    low = line.cell("accuracy_difference").extra.get("low")
    return isinstance(low, float) and low >= -EQUIVALENCE_MARGIN


def _mib(value: float) -> str:
    return f"{mib(value)} MiB"


def _ms(value: float) -> str:
    return f"{milliseconds(value)} ms"


EXACT = "methods that promise BPTT's gradient on the same model in the same precision, and kept it"
QUESTIONS = (
    Question("least memory, BPTT's gradient", EXACT, "peak_live_bytes", (), _same_gradient, _mib),
    Question("least memory, any gradient", "all methods", "peak_live_bytes", (), lambda line: True, _mib),
    Question(
        "least memory, as accurate as BPTT",
        f"methods whose accuracy is shown by paired seeds to be no more than {100 * EQUIVALENCE_MARGIN:g} percentage "
        "point below the baseline's, trained in this comparison",
        "peak_live_bytes", ("accuracy",), _as_accurate, _mib,
    ),
    Question("fastest step, BPTT's gradient", EXACT, "step_time_s", (), _same_gradient, _ms),
    Question("fastest step, any gradient", "all methods", "step_time_s", (), lambda line: True, _ms),
)  # fmt: skip


def short(tables: Sequence[Table], headings: Headings) -> Grid:
    """One row for each question that the page can answer, of measured cells and of predicted ones.

    Args:
        tables: the page's method tables.
        headings: names of groups.
    """
    heads = [Head("question"), Head("answer", "the method with the smallest number"),
             *(Head(c.title, c.help, c.key != "gradient") for c in COLUMNS if c.key in SHOWN),
             Head("ratios against"), Head("next best", "the runner-up and its number"),
             Head("of", "methods that took part", numeric=True),
             Head("in", "the comparison that the row is read off")]  # fmt: skip
    fresh = [table for table in tables if not table.group.stale]
    rows = []
    for predicted in (False, True):
        found = [table for table in fresh if table.group.spec.predicted == predicted]
        rows += [row for question in QUESTIONS for row in _answer(question, found, headings)]
    grid = Grid("short", heads, rows)
    return without_unasked(grid) if rows else grid


def _answer(question: Question, tables: Sequence[Table], headings: Headings) -> Iterator[list[Cell]]:
    """The question's row; none where no group compares :data:`LEAST` methods."""
    asked = [(table, ranked) for table in tables if len(ranked := _ranked(question, table)) >= LEAST]
    if not asked:
        return
    table, ranked = max(asked, key=lambda pair: (len(pair[1]), _size(pair[0])))
    best, second = ranked[:2]
    measures = [cell for column, cell in zip(COLUMNS, best.cells, strict=True) if column.key in SHOWN]
    marks = {"predicted": "bytes under fake tensors: nothing was run"} if table.group.spec.predicted else {}
    yield [
        Cell(question.title, question.title, question.help, marks=marks),
        Cell(best.label, best.label, best.row.spec.method.label, best.row.items[0]),
        *measures,
        text(best.row.spec.baseline),
        text(f"{second.label}: {question.shown(_value(question, second))}"),
        Cell(len(ranked), str(len(ranked))),
        text(headings.title(table.group)),
    ]


def _ranked(question: Question, table: Table) -> list[Line]:
    """Those that take part and ended well, best first."""
    needed = (question.key, *question.needs)
    part = [
        line
        for line in table.lines
        if line.row.status == "ok" and all(line.cell(key).value is not None for key in needed) and question.admits(line)
    ]
    order = {id(line): _value(question, line) for line in part}
    if question.key == "step_time_s":
        paces = {id(line): pace for line in part if (pace := _pace(table, line)) is not None}
        order = paces if len(paces) == len(part) else order
    # A method that is timed against two baselines takes part once.
    once: dict[str, Line] = {}
    for line in sorted(part, key=lambda line: order[id(line)]):
        once.setdefault(line.row.spec.method.label, line)
    return list(once.values())


def _pace(table: Table, line: Line) -> float | None:
    """Step time as a multiple of that of the baselines' own baseline, along ratios of interleaved rounds.

    Medians of two processes also differ by what else the machine did at those times.
    """
    pace, name = 1.0, line.row.spec.method.name
    while name != line.row.spec.baseline:
        ratio = line.cell("time_longer").value
        bases = [other for other in table.lines if other.row.spec.method.name == line.row.spec.baseline]
        if not isinstance(ratio, float | int) or len(bases) != 1:
            return None
        pace *= ratio
        line, name = bases[0], bases[0].row.spec.method.name
    return pace


def _value(question: Question, line: Line) -> float:
    value = line.cell(question.key).value
    assert isinstance(value, float | int)
    return value


def _size(table: Table) -> float:
    """The largest peak of the group: of two comparisons of as many methods the larger network tells more."""
    peaks = [line.cell("peak_live_bytes").value for line in table.lines]
    return max((peak for peak in peaks if isinstance(peak, float | int)), default=0)
