"""Cells on this machine: a queue of device slots, each cell in a process of its own from a fork server."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import BinaryIO, Protocol

from harness.executors import child
from harness.executors.cgroup import OomCounter
from harness.executors.devices import Kind, Slot, environment, joined, kind_of
from harness.executors.job import Job, Outcome
from harness.executors.server import DEAD_SERVER_EXIT_CODE, PRELOAD, ForkServer, end_group, pipe, sweep_group
from harness.run.interrupt import Interrupt

LOG_TAIL_BYTES = 8000
"""How much of a dead worker's output is kept: a traceback, not a training log."""


class Watcher(Protocol):
    """Is told what happens while cells run."""

    def started(self, job: Job) -> None:
        """A cell's process was started."""

    def phase(self, job: Job, name: str) -> None:
        """A cell's worker entered a phase."""


class _Deaf:
    def started(self, job: Job) -> None:
        """Ignore it."""

    def phase(self, job: Job, name: str) -> None:
        """Ignore it."""


@dataclass
class _Running:
    """A cell's process. ``allowance_s`` is what was left of its time when it began to wait for its turn."""

    job: Job
    slots: list[Slot]
    process: ForkServerProcess
    channel: Connection | None
    log: BinaryIO
    started: float
    deadline: float
    oom_mark: int
    server: int | None
    attempt: int
    phase: str = "build"
    allowance_s: float = 0.0
    timed_out: bool = False


class LocalExecutor:
    """Runs jobs, each in a process of its own, with hard limits on the wall time of the whole process group.

    Args:
        jobs: how many CPU cells run at the same time.
        devices: CUDA devices as ``CUDA_VISIBLE_DEVICES`` names them; a cell takes as many as it asks for.
        entry: ``module:function`` that measures a :class:`Job` and writes its record.
        server: the fork server; by default one that has imported torch and every plugin.
        interrupt: ends :meth:`run` when the user asks to stop.
        watcher: is told when cells start and which phase they are in.
    """

    def __init__(
        self,
        jobs: int,
        devices: Sequence[str] = (),
        entry: str = "harness.worker:run_cell",
        server: ForkServer | None = None,
        interrupt: Interrupt | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.slots = [Slot("cpu")] * jobs + [Slot("cuda", index, token) for index, token in enumerate(devices)]
        self.entry = entry
        self.server = ForkServer(PRELOAD) if server is None else server
        self._interrupt = interrupt
        self._watcher: Watcher = _Deaf() if watcher is None else watcher
        self._oom = OomCounter()
        self._free: list[Slot] = []
        self._next: dict[Kind, Job] = {}
        self._running: dict[int, _Running] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Run all jobs; yields how each ended, in the order in which they end."""
        kinds: tuple[Kind, ...] = ("cpu", "cuda")
        return self.run_queues({kind: iter([job for job in jobs if kind_of(job.spec) == kind]) for kind in kinds})

    def run_queues(self, queues: Mapping[Kind, Iterator[Job]]) -> Iterator[Outcome]:
        """Run jobs that are taken from their queue only when a slot is free for them.

        Closing the iterator kills what still runs.

        Args:
            queues: jobs for CPU slots and for CUDA devices.

        Raises:
            StoppedError: the user asked to stop; nothing runs any more.
            ServerError: no process can be started.
        """
        self._free, self._next = list(self.slots), {}
        try:
            while True:
                self._check_interrupt()
                self._fill(queues)
                if not self._running:
                    return
                yield from self._wait()
        finally:
            self._end_all()

    def _check_interrupt(self) -> None:
        if self._interrupt is not None:
            self._interrupt.check()

    def _fill(self, queues: Mapping[Kind, Iterator[Job]]) -> None:
        for kind in queues:
            while (slots := self._claim(kind, queues[kind])) is not None:
                job = self._next.pop(kind)
                self._start(replace(job, device_index=slots[0].index), slots, attempt=1)
                self._check_interrupt()

    def _claim(self, kind: Kind, queue: Iterator[Job]) -> list[Slot] | None:
        """Slots for the next job of a kind, which is kept until there are enough; None: too few are free, or no job is.

        A job that asks for more than there are gets all: its worker says what it lacks.
        """
        free = [slot for slot in self._free if slot.kind == kind]
        if not free:
            return None
        job = self._next.get(kind) or next(queue, None)
        if job is None:
            return None
        self._next[kind] = job
        need = min(job.spec.devices, sum(slot.kind == kind for slot in self.slots))
        if len(free) < need:
            return None
        for slot in free[:need]:
            self._free.remove(slot)
        return free[:need]

    def _start(self, job: Job, slots: list[Slot], attempt: int) -> None:
        self.server.state()  # waits for a new server's imports, which are not the cell's time
        ours, theirs = pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        mark = self._oom.mark()
        arguments = (job.to_json(), self.entry, environment(job, joined(slots)), theirs, child.Descriptor(log.fileno()))
        process = self.server.launch(child.run_job, arguments)
        theirs.close()
        now = time.monotonic()
        self._running[process.sentinel] = _Running(
            job, slots, process, ours, log, now, now + job.timeout_s, mark, self.server.pid, attempt
        )
        self._watcher.started(job)

    def _wait(self) -> Iterator[Outcome]:
        """Sleep until something happens, deal with it, and yield what ended."""
        channels = {cell.channel: cell for cell in self._running.values() if cell.channel is not None}
        events: list[Connection | int] = [*self._running, *channels]
        if self._interrupt is not None:
            events.append(self._interrupt.reader)
        nearest = min(cell.deadline for cell in self._running.values())
        timeout = None if math.isinf(nearest) else max(0.0, nearest - time.monotonic())
        ready = wait(events, timeout)
        for channel in channels.keys() & set(ready):
            self._listen(channels[channel])
        for sentinel in self._running.keys() & set(ready):
            outcome = self._ended(self._running.pop(sentinel))
            if outcome is not None:
                yield outcome
        self._enforce_deadlines()

    def _listen(self, cell: _Running) -> None:
        """Take every message that lies ready."""
        while cell.channel is not None and cell.channel.poll():
            try:
                kind, value = cell.channel.recv()
            except (EOFError, OSError):  # closed by the process's end, or cut off in the middle of a message
                cell.channel.close()
                cell.channel = None
                return
            if kind == "phase":
                cell.phase = value
                self._watcher.phase(cell.job, value)
            elif value:
                cell.allowance_s, cell.deadline = cell.deadline - time.monotonic(), math.inf
            elif not cell.timed_out:
                cell.deadline = time.monotonic() + cell.allowance_s

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for cell in self._running.values():
            if now >= cell.deadline and not cell.timed_out:
                cell.timed_out = True
                cell.deadline = math.inf
                end_group(cell.process.pid)

    def _ended(self, cell: _Running) -> Outcome | None:
        """The outcome of a process that ended, or None where the fork server died under it and it starts again."""
        cell.process.join()
        code, pid = cell.process.exitcode, cell.process.pid
        server_died = code == DEAD_SERVER_EXIT_CODE and self.server.died(cell.server)
        if pid is not None:
            # data loaders of a crashed worker; the worker itself, when only its server died
            end_group(pid) if server_died else sweep_group(pid)
        self._listen(cell)
        outcome = self._outcome(cell, code)
        self._close(cell)
        if server_died and not cell.timed_out and cell.attempt == 1:
            self._start(cell.job, cell.slots, attempt=2)
            return None
        self._free += cell.slots
        return outcome

    def _outcome(self, cell: _Running, code: int | None) -> Outcome:
        signal = -code if code is not None and code < 0 else None
        return Outcome(
            job=cell.job,
            exitcode=code if signal is None else None,
            signal=signal,
            timed_out=cell.timed_out,
            oom_killed=signal == 9 and not cell.timed_out and self._oom.struck(cell.oom_mark),
            seconds=time.monotonic() - cell.started,
            phase=cell.phase,
            log=_tail(cell.log),
        )

    def _close(self, cell: _Running) -> None:
        if cell.channel is not None:
            cell.channel.close()
        cell.log.close()
        cell.process.close()

    def _end_all(self) -> None:
        for cell in self._running.values():
            end_group(cell.process.pid)
        for cell in self._running.values():
            cell.process.join()
            self._close(cell)
        self._running.clear()


def _tail(log: BinaryIO) -> str:
    size = log.seek(0, 2)
    log.seek(max(0, size - LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
