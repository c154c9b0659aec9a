"""Rows from processes of their own, several at a time: a prediction is Python's work and keeps one core busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from harness import registry
from harness.executors.server import Call, ForkServer, ServerError, end_group
from harness.plan.candidates import Row
from harness.spec import CellSpec, Ref

TIMEOUT_S = 300.0
"""Seconds for all settings of one method (our choice: on SEW-ResNet-34 most take under ten)."""

Group = list[tuple[Ref, bool]]
"""Settings of one method, each with whether to look for its limits."""

ENTRY = "harness.plan.candidates:evaluate_json"


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
    """
    found: dict[str, Row] = {}
    waiting, running = _groups(methods), list[tuple[Call, Group, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                group = waiting.pop(0)
                words = [(ref.model_dump_json(), limits) for ref, limits in group]
                call = Call(server, ENTRY, (spec.model_dump_json(), words, available))
                running.append((call, group, time.monotonic() + timeout_s))
            events = [event for call, *_ in running for event in (call.channel, call.process.sentinel)]
            ready = set(wait(events, timeout=max(0.0, min(end for *_, end in running) - time.monotonic())))
            for call, group, end in list(running):
                late = time.monotonic() >= end
                if late or {call.channel, call.process.sentinel} & ready:
                    running.remove((call, group, end))
                    for row in _rows(call, group, timeout_s if late else None):
                        found[_key(row.method)] = row
                        tell(row)
    finally:
        for call, *_ in running:
            call.__exit__()
    return [found[_key(ref)] for ref, _ in methods]


def _groups(methods: Sequence[tuple[Ref, bool]]) -> list[Group]:
    """Settings of one method share a process, and with it what it has measured; the largest groups begin."""
    by_name: dict[str, Group] = {}
    for ref, limits in methods:
        by_name.setdefault(ref.name, []).append((ref, limits))
    return sorted(by_name.values(), key=len, reverse=True)


def _rows(call: Call, group: Group, late: float | None) -> list[Row]:
    try:
        with call:
            if late is not None and not call.channel.poll():
                end_group(call.process.pid)
                raise ServerError(f"no prediction within {late:g} s; --timeout gives it longer")
            return [Row.from_json(row) for row in call.result()]
    except ServerError as error:
        plugins = [(ref, registry.plugin("methods", ref.name)) for ref, _ in group]
        return [Row(ref, p.gradient, p.model, p.numerics, reason=str(error)) for ref, p in plugins]


def _key(method: Ref) -> str:
    return method.model_dump_json()
