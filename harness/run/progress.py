"""What a run says while it runs: a live table on a terminal, one line a finished cell otherwise.

Redrawn when something happens and never by a timer: a thread that draws would run beside the timed phases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.run.labels import cell_label

if TYPE_CHECKING:
    from harness.executors.job import Job
    from harness.record import Status
    from harness.spec import CellSpec

STYLES: dict[str, str] = {"ok": "green", "unsupported": "yellow", "unavailable": "yellow"}
FAILED_STYLE = "bold red"


@dataclass
class _Active:
    label: str
    phase: str
    since: datetime


class Pace:
    """How long the rest takes, from earlier runs of the same cells or from this run's mean.

    Args:
        total: number of cells.
        slots: how many run at the same time.
        estimates: seconds that earlier runs took, by cell.
    """

    def __init__(self, total: int, slots: int, estimates: Mapping[str, float]) -> None:
        self.slots = max(1, slots)
        self._estimates = dict(estimates)
        self._unknown = total - len(self._estimates)
        self._took: list[float] = []

    def done(self, cell: str, seconds: float | None) -> None:
        """A cell ended after so many seconds; None when another run measured it."""
        if seconds is not None:
            self._took.append(seconds)
        if self._estimates.pop(cell, None) is None:
            self._unknown -= 1

    def left_s(self) -> float | None:
        """Seconds until all cells have ended; None while nothing is known about some of them."""
        if self._unknown > 0 and not self._took:
            return None
        guess = fmean(self._took) if self._took else 0.0
        return (sum(self._estimates.values()) + max(0, self._unknown) * guess) / self.slots


class Progress(ABC):
    """Counts cells and says what happens; a context manager.

    Args:
        total: number of cells to run.
        pace: for the time that is left.
    """

    def __init__(self, total: int, pace: Pace) -> None:
        self.total = total
        self.pace = pace
        self.counts: Counter[str] = Counter()
        self.active: dict[str, _Active] = {}

    def started(self, job: Job) -> None:
        """A cell's process was started."""
        self.active[job.run_id] = _Active(cell_label(job.spec), "start", datetime.now())
        self.changed()

    def phase(self, job: Job, name: str) -> None:
        """A cell entered a phase."""
        if job.run_id in self.active:
            self.active[job.run_id].phase = name
        self.changed()

    def finished(self, spec: CellSpec, status: Status, seconds: float | None, note: str = "", run_id: str = "") -> None:
        """A cell ended.

        Args:
            spec: the cell.
            status: how it ended.
            seconds: its wall time; None when another run measured it.
            note: the reason of a failure.
            run_id: of this run's record.
        """
        self.counts[status] += 1
        self.active.pop(run_id, None)
        self.pace.done(spec.hash, seconds)
        self.say(self._line(cell_label(spec), status, seconds, note))
        self.changed()

    def _line(self, label: str, status: Status, seconds: float | None, note: str) -> Text:
        width = len(str(self.total))
        took = "elsewhere" if seconds is None else f"{seconds:.1f} s"
        line = Text(f"[{self.counts.total():>{width}}/{self.total}] ")
        line.append(status, style=STYLES.get(status, FAILED_STYLE)).append(f" {took} {label}")
        return line.append(f": {note}", style="dim") if note else line

    @abstractmethod
    def say(self, text: Text | str) -> None:
        """Print a line that stays."""

    def changed(self) -> None:
        """Something is different from what is shown."""
        return

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class PlainProgress(Progress):
    """One line a finished cell, for files and pipes."""

    def __init__(self, total: int, pace: Pace, console: Console) -> None:
        super().__init__(total, pace)
        self._console = console

    def say(self, text: Text | str) -> None:
        """Print a line, unwrapped."""
        self._console.print(text, soft_wrap=True, highlight=False)


class LiveProgress(PlainProgress):
    """Finished cells scroll by above a table of the running ones."""

    def __init__(self, total: int, pace: Pace, console: Console) -> None:
        super().__init__(total, pace, console)
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self.render)

    def changed(self) -> None:
        """Draw the table again."""
        self._live.refresh()

    def render(self) -> RenderableType:
        """The table of running cells and the line of totals."""
        table = Table("running", "phase", "since", expand=True, box=None, header_style="bold")
        for cell in self.active.values():
            table.add_row(Text(cell.label, overflow="ellipsis", no_wrap=True), cell.phase, f"{cell.since:%H:%M:%S}")
        return Group(table, self._totals())

    def _totals(self) -> Text:
        line = Text(f"{self.counts.total()}/{self.total} cells ", style="bold")
        for status, count in sorted(self.counts.items()):
            line.append(f" {status} {count}", style=STYLES.get(status, FAILED_STYLE))
        left = self.pace.left_s()
        if left is None:
            return line.append("  time left: unknown", style="dim")
        end = datetime.now() + timedelta(seconds=left)
        return line.append(f"  about {duration(left)} left, until {end:%H:%M}", style="dim")

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def progress(total: int, pace: Pace, console: Console | None = None) -> Progress:
    """The live table on a terminal, plain lines otherwise."""
    where = Console() if console is None else console
    return LiveProgress(total, pace, where) if where.is_terminal else PlainProgress(total, pace, where)


def duration(seconds: float) -> str:
    """A length of time in two units at most: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
