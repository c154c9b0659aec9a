"""A run: measure the cells of a suite that are not finished, and leave a record for every one."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from rich.console import Console

from harness import worker
from harness.errors import UsageError
from harness.executors.devices import Kind, cuda_tokens, kind_of
from harness.executors.job import Job, Outcome
from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer
from harness.record import Record, Status
from harness.run.cellclaims import Claims
from harness.run.interrupt import Interrupt
from harness.run.prepare import prepare_all
from harness.run.progress import Pace, Progress, progress
from harness.run.todo import RunOptions, Selection, history, select
from harness.run.workqueue import Hooks, WorkQueue
from harness.spec import CellSpec
from harness.store import Store, new_run_id
from harness.store.disk import write_atomic

FINE: frozenset[str] = frozenset({"ok", "unsupported", "unavailable"})
"""Statuses that are no failure: the method or the machine cannot do it, and says so."""
LOGS = ".runs"
"""Folder inside a store for what was run in which order."""
LOOK_AGAIN_S = 1.0
"""How often to look whether other runs have finished their cells, when nothing else is left to do."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Args:
        counts: the statuses of all selected cells, earlier runs' included.
        measured: how many cells this run measured.
        order_seed: of the order in which they ran.
    """

    counts: Counter[str]
    measured: int
    order_seed: int

    def exit_code(self, strict: bool) -> int:
        """0 when all cells are fine, else 1."""
        fine = {"ok"} if strict else FINE
        return 0 if set(self.counts) <= fine else 1


def run(options: RunOptions, console: Console) -> RunResult:
    """Measure what is not finished.

    Raises:
        UsageError: before anything runs: a wrong option, or a store that cannot be written.
        StoppedError: the user stopped it; records of finished cells are in the store, and nothing runs any more.
    """
    Store(options.store).check_writable()
    server = ForkServer()
    server.begin()  # it imports while this process reads the suite
    try:
        return measure(options, select(options), server, console)
    finally:
        server.stop()


def measure(options: RunOptions, selection: Selection, server: ForkServer, console: Console) -> RunResult:
    """Measure what is left to do of a selection.

    Args:
        options: what the user asked for.
        selection: the cells.
        server: where processes come from; has begun where there is something to do.
        console: where progress goes.

    Raises:
        UsageError: as :func:`run`.
        StoppedError: as :func:`run`.
    """
    for problem in selection.problems:
        console.print(f"damaged record: {problem}", soft_wrap=True, highlight=False, markup=False)
    with Interrupt() as interrupt:
        return Run(options, selection, server, interrupt, console).measure()


class Run:
    """One run on its way.

    Args:
        options: what the user asked for.
        selection: the cells.
        server: where processes come from.
        interrupt: the user's wish to stop.
        console: where progress goes.
    """

    def __init__(
        self, options: RunOptions, selection: Selection, server: ForkServer, interrupt: Interrupt, console: Console
    ) -> None:
        self.options = options
        self.selection = selection
        self.server = server
        self.interrupt = interrupt
        self.console = console
        self.store = Store(options.store)
        self.timeout_s = selection.sizes.timeout_s if options.timeout_s is None else options.timeout_s
        self.order_seed = secrets.randbelow(2**31) if options.order_seed is None else options.order_seed
        self.statuses = {cell: latest.status for cell, latest in selection.finished.items()}
        self.measured = 0
        self.devices: tuple[str, ...] = ()

    def measure(self) -> RunResult:
        """Run every cell of the selection that is to be run."""
        if self.selection.todo:
            self._measure()
        return RunResult(Counter(self.statuses.values()), self.measured, self.order_seed)

    def _measure(self) -> None:
        with self.interrupt.at_once():  # the server's imports take seconds
            self.server.state()
        self.devices = self._devices()
        order = running_order(self.selection.todo, self.order_seed)
        self._log(order)
        for data, problem in prepare_all(order, self.server, self.interrupt).items():
            self._say(f"data {data}: {problem}")
        claims = Claims(self.store.root)
        hooks = Hooks(self._kind, self._job, self._new_record, self._elsewhere)
        queue = WorkQueue(order, claims, self.timeout_s, hooks)
        with ExitStack() as stack:
            stack.callback(claims.release_all)
            self.progress = stack.enter_context(self._progress())
            self._work(queue, claims)

    def _work(self, queue: WorkQueue, claims: Claims) -> None:
        executor = LocalExecutor(
            self.options.jobs, self.devices, self.options.entry, self.server, self.interrupt, self.progress
        )
        waits = False
        while True:
            for outcome in executor.run_queues(queue.take()):
                self._settle(outcome)
                claims.release(outcome.job.spec.hash)
                self._warn()
            if queue.look_again():
                continue
            if not queue.claimed:
                return
            if not waits:
                self.progress.say(f"waiting for {len(queue.claimed)} cells that another run on this store measures")
                waits = True
            wait([self.interrupt.reader], LOOK_AGAIN_S)
            self.interrupt.check()

    def _settle(self, outcome: Outcome) -> None:
        """See that a cell left a record, and tell how it ended."""
        path = ensure_record(self.store, outcome)
        self.measured += 1
        self._finished(outcome.job.spec, path, outcome.seconds, outcome.job.run_id)

    def _finished(self, spec: CellSpec, path: Path, seconds: float | None, run_id: str = "") -> None:
        record = self.store.read(path)
        status: Status = "error" if record is None else record.status
        note = f"the record {path} cannot be read" if record is None else reason(record)
        self.statuses[spec.hash] = status
        self.progress.finished(spec, status, seconds, note, run_id)

    def _elsewhere(self, spec: CellSpec, path: Path) -> None:
        self._finished(spec, path, None)

    def _new_record(self, spec: CellSpec) -> Path | None:
        known = self.selection.known.get(spec.hash, frozenset())
        return next((file for file in self._folder(spec).glob("*.json") if file.name not in known), None)

    def _folder(self, spec: CellSpec) -> Path:
        return self.store.root / self.selection.suite.name / spec.hash

    def _kind(self, spec: CellSpec) -> Kind:
        # without a device a worker says `unavailable` and why, and needs no device for that
        return kind_of(spec) if self.devices else "cpu"

    def _job(self, spec: CellSpec) -> Job:
        suite, sizes = self.selection.suite, self.selection.sizes
        return Job(
            spec=spec,
            suite=suite.name,
            suite_sha256=suite.sha256,
            store=str(self.store.root),
            run_id=new_run_id(),
            timeout_s=self.timeout_s,
            threads=sizes.threads,
            device_index=None,
            strict=self.options.strict,
            snapshot=self.options.snapshot,
        )

    def _devices(self) -> tuple[str, ...]:
        need = [cell for cell in self.selection.todo if kind_of(cell) == "cuda"]
        devices = cuda_tokens(self.server) if need else ()
        if need and not devices and len(need) == len(self.selection.todo):
            others = [name for name, profile in self.selection.suite.profiles.items() if profile.device == "cpu"]
            raise UsageError(
                f"--profile {self.selection.profile}: its cells need a CUDA device, and there is none here. "
                f"Profiles for the CPU: {', '.join(others) or '(none)'}"
            )
        return devices

    def _progress(self) -> Progress:
        total, slots = len(self.selection.todo), max(1, len(self.devices)) if self.devices else self.options.jobs
        return progress(total, Pace(total, slots, history(self.options, self.selection)), self.console)

    def _log(self, order: list[CellSpec]) -> None:
        """Note the order and its seed in the store."""
        suite = self.selection.suite
        facts = {
            "suite": suite.name,
            "suite_sha256": suite.sha256,
            "profile": self.selection.profile,
            "order_seed": self.order_seed,
            "jobs": self.options.jobs,
            "devices": len(self.devices),
            "started": time.time(),
            "cells": [cell.hash for cell in order],
        }
        text = json.dumps(facts, indent=1)
        write_atomic(self.store.root / LOGS / f"{new_run_id()}.json", lambda file: file.write_text(text))

    def _warn(self) -> None:
        while self.server.warnings:
            self._say(f"warning: {self.server.warnings.pop()}")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def running_order(cells: Sequence[CellSpec], seed: int) -> list[CellSpec]:
    """Cells in random order, those that are timed first.

    A timed phase waits until nothing runs beside it: among its like that is a second, beside trainings half a minute.
    """
    order = list(cells)
    random.Random(seed).shuffle(order)
    return sorted(order, key=lambda cell: "time" not in cell.phases)


def ensure_record(store: Store, outcome: Outcome) -> Path:
    """The record of a process that ended; written here when the process died without writing one.

    Raises:
        UsageError: the store cannot be written any more.
    """
    job = outcome.job
    path = store.root / job.suite / job.spec.hash / f"{job.run_id}.json"
    if path.exists():
        return path
    record = worker.failed_record(job, outcome.status, outcome.reason, outcome.phase, outcome.seconds)
    record.phases[outcome.phase].traceback = outcome.log or None
    return store.write(record)


def reason(record: Record) -> str:
    """Why a cell did not end well; empty for one that did."""
    if record.status == "ok":
        return ""
    phases = record.phases.items()
    return next((f"{name}: {phase.reason or ''}" for name, phase in phases if phase.status == record.status), "")
