"""Cells that wait for this run: each is claimed when it is taken, and left alone while another run has it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.executors.devices import Kind
from harness.executors.job import Job
from harness.run.cellclaims import Claims
from harness.spec import CellSpec


@dataclass(frozen=True)
class Hooks:
    """What the queue asks of the run.

    Args:
        kind: the slot that a cell needs.
        job: makes a cell's job.
        measured: the record that another run has written for a cell since this run began, if any.
        elsewhere: is told of such a record.
    """

    kind: Callable[[CellSpec], Kind]
    job: Callable[[CellSpec], Job]
    measured: Callable[[CellSpec], Path | None]
    elsewhere: Callable[[CellSpec, Path], None]


class WorkQueue:
    """Hands out each cell once, to this run or to the other runs on the store.

    Args:
        cells: cells in the order in which they are to run.
        claims: this run's claims.
        timeout_s: a cell's time limit.
        hooks: the run.
    """

    def __init__(self, cells: Iterable[CellSpec], claims: Claims, timeout_s: float, hooks: Hooks) -> None:
        self._waiting: dict[Kind, deque[CellSpec]] = {"cpu": deque(), "cuda": deque()}
        self._claims = claims
        self._timeout_s = timeout_s
        self._hooks = hooks
        self.claimed: dict[str, CellSpec] = {}
        """Cells that another live run is measuring, by hash."""
        for cell in cells:
            self._waiting[hooks.kind(cell)].append(cell)

    def take(self) -> dict[Kind, Iterator[Job]]:
        """Jobs for each kind of slot; a cell is claimed at the moment when its job is taken."""
        return {kind: self._take(kind) for kind in self._waiting}

    def _take(self, kind: Kind) -> Iterator[Job]:
        waiting = self._waiting[kind]
        while waiting:
            cell = waiting.popleft()
            if self._won(cell):
                yield self._hooks.job(cell)

    def _won(self, cell: CellSpec) -> bool:
        if self._claims.take(cell.hash, self._timeout_s) is not None:
            self.claimed[cell.hash] = cell
            return False
        # looked at after claiming: a run writes its record before it gives its claim back
        record = self._hooks.measured(cell)
        if record is None:
            return True
        self._claims.release(cell.hash)
        self._hooks.elsewhere(cell, record)
        return False

    def look_again(self) -> bool:
        """Sort out the cells of other runs: finished, or abandoned and to be run here. True when some are to be run."""
        for cell in list(self.claimed.values()):
            held = self._claims.holder(cell.hash) is not None
            record = self._hooks.measured(cell)
            if record is not None:
                self._hooks.elsewhere(cell, record)
            elif held:
                continue
            else:
                self._waiting[self._hooks.kind(cell)].append(cell)
            del self.claimed[cell.hash]
        return any(self._waiting.values())
