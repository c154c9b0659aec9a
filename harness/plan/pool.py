"""Rows from processes of their own, several at a time: a prediction is Python's work and keeps one core busy.

A process takes one method after the other, and with it the model and the operators that it remembers. One that dies or
takes too long costs the method that it was busy with; the next method gets a fresh one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from harness import registry
from harness.build import build_model
from harness.contracts import DataInfo
from harness.executors.server import Call, ForkServer, ServerError, end_group, pipe
from harness.plan.candidates import Row, evaluate
from harness.plan.hardware import DEFAULT, HARDWARE, Hardware
from harness.plan.predictor import Subject
from harness.spec import CellSpec, Ref

TIMEOUT_S = 300.0
"""Seconds for all settings of one method (our choice: on SEW-ResNet-34 most take under ten)."""

Group = list[tuple[Ref, bool]]
"""Settings of one method, each with whether to look for its limits."""

ENTRY = "harness.plan.pool:serve"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rows(
    spec: CellSpec,
    methods: Sequence[tuple[Ref, bool]],
    available: int,
    server: ForkServer,
    jobs: int,
    timeout_s: float = TIMEOUT_S,
    tell: Callable[[Row], None] = lambda row: None,
    hardware: Hardware = DEFAULT,
) -> list[Row]:
    """One row a method, in the order given.

    Args:
        spec: model, data and sizes.
        methods: with whether to look for limits.
        available: bytes for tensors.
        server: where the processes come from.
        jobs: how many run at the same time.
        timeout_s: a method that takes longer is left out, and says so.
        tell: called for every row when it is there.
        hardware: what work is weighed as.
    """
    found: dict[str, Row] = {}
    waiting, idle, busy = _groups(methods), list[_Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                busy.append(idle.pop() if idle else _Worker(server, spec, available, hardware))
                busy[-1].begin(waiting.pop(0), timeout_s)
            wait(
                [worker.channel for worker in busy],
                timeout=max(0.0, min(worker.end for worker in busy) - time.monotonic()),
            )
            for worker in list(busy):
                made = worker.take()
                if made is not None:
                    busy.remove(worker)
                    idle += [worker] if worker.alive else []
                    for row in made:
                        found[_key(row.method)] = row
                        tell(row)
    finally:
        for worker in [*idle, *busy]:
            worker.close()
    return [found[_key(ref)] for ref, _ in methods]


def serve(tasks: Connection, answers: Connection, spec: str, available: int, hardware: str) -> None:
    """Predict groups of methods until there are no more; the model and the data are the registry's.

    Args:
        tasks: gives lists of a :class:`Ref` as JSON and whether to look for its largest batch and T.
        answers: takes lists of rows as JSON.
        spec: a :class:`CellSpec` as JSON.
        available: bytes for tensors.
        hardware: name of what work is weighed as.
    """
    cell = CellSpec.model_validate_json(spec)
    info: DataInfo = registry.create("datasets", cell.data).info()
    # One model for all predictions: to initialise it takes longer than a small step under fake tensors.
    subject = Subject(cell, info, build_model(cell, info), hardware=HARDWARE[hardware])
    while True:
        try:
            group = tasks.recv()
        except EOFError:
            return
        answers.send(
            [evaluate(subject, Ref.model_validate_json(ref), available, limits).to_json() for ref, limits in group]
        )


class _Worker:
    """A process that predicts one group at a time.

    Args:
        server: where it comes from.
        spec: model, data and sizes.
        available: bytes for tensors.
        hardware: what work is weighed as.
    """

    def __init__(self, server: ForkServer, spec: CellSpec, available: int, hardware: Hardware) -> None:
        tasks, self._tasks = pipe()
        self._answers, answers = pipe()
        self._call = Call(server, ENTRY, (tasks, answers, spec.model_dump_json(), available, hardware.name))
        tasks.close()
        answers.close()
        self._group: Group = []
        self._timeout_s = self.end = math.inf
        self.alive = True

    @property
    def channel(self) -> Connection:
        """Becomes ready when there is something to :meth:`take`: rows, or the end of the process."""
        return self._answers

    def begin(self, group: Group, timeout_s: float) -> None:
        """Give it a group, with the seconds it has."""
        self._group, self._timeout_s, self.end = group, timeout_s, time.monotonic() + timeout_s
        with suppress(BrokenPipeError):  # it has ended since: there is an end to take
            self._tasks.send([(ref.model_dump_json(), limits) for ref, limits in group])

    def take(self) -> list[Row] | None:
        """Its group's rows; None while it is at them. A process that gives none, because it died or is late, is closed."""
        late = time.monotonic() >= self.end
        try:
            if self._answers.poll():
                return [Row.from_json(row) for row in self._received()]
            if late:
                raise ServerError(f"no prediction within {self._timeout_s:g} s; --timeout gives it longer")
            return None
        except ServerError as error:
            plugins = [(ref, registry.plugin("methods", ref.name)) for ref, _ in self._group]
            self.close()
            return [Row(ref, p.gradient, p.model, p.numerics, reason=str(error)) for ref, p in plugins]

    def _received(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self._answers.recv()
        except EOFError:
            self._call.result()  # raises what ended it
            raise ServerError("its process ended before it was done") from None
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.alive:
            self.alive = False
            end_group(self._call.process.pid)
            self._call.__exit__()
            self._tasks.close()
            self._answers.close()


def _groups(methods: Sequence[tuple[Ref, bool]]) -> list[Group]:
    """Settings of one method stay together, and with them what was measured for the first; the largest groups begin."""
    by_name: dict[str, Group] = {}
    for ref, limits in methods:
        by_name.setdefault(ref.name, []).append((ref, limits))
    return sorted(by_name.values(), key=len, reverse=True)


def _key(method: Ref) -> str:
    return method.model_dump_json()
