"""Data made ready once, before the cells that need it: each data set in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any

from harness import registry
from harness.contracts import DataSource, Unavailable
from harness.executors.server import Call, ForkServer, ServerError
from harness.run.interrupt import Interrupt
from harness.spec import CellSpec, Ref


def prepare_all(cells: Iterable[CellSpec], server: ForkServer, interrupt: Interrupt | None = None) -> dict[str, str]:
    """Call ``DataSource.prepare`` once for each data set and number of time steps that the cells read.

    Args:
        cells: the cells to run; predicted ones read no data.
        server: where the processes come from.
        interrupt: ends the preparation when the user asks to stop.

    Returns:
        What went wrong, by data set; the cells' own records say it too, so nothing here is fatal.

    Raises:
        StoppedError: the user asked to stop.
    """
    needed = {(cell.data.model_dump_json(), cell.T): cell for cell in cells if _has_something_to_prepare(cell)}
    problems = {}
    for (data, steps), cell in sorted(needed.items(), key=lambda item: item[0]):
        if interrupt is not None:
            interrupt.check()
        problem = _prepare(server, data, steps, interrupt)
        if problem is not None:
            problems[f"{cell.data.label} T={steps}"] = problem
    return problems


def prepare_data(data: str, steps: int) -> str | None:
    """Prepare one data set, in the child: None, or why it is unavailable.

    Args:
        data: a :class:`Ref` as JSON.
        steps: ``T``.
    """
    try:
        source: Any = registry.create("datasets", Ref.model_validate_json(data))
        source.prepare(steps)
    except Unavailable as error:
        return str(error)
    return None


def _has_something_to_prepare(cell: CellSpec) -> bool:
    entry = registry.entries("datasets").get(cell.data.name)
    if cell.predicted or entry is None or entry.plugin is None:
        return False
    return entry.plugin.prepare is not DataSource.prepare


def _prepare(server: ForkServer, data: str, steps: int, interrupt: Interrupt | None) -> str | None:
    with Call(server, "harness.run.prepare:prepare_data", (data, steps)) as call:
        events: list[Any] = [call.channel, call.process.sentinel]
        ready = wait(events if interrupt is None else [*events, interrupt.reader])
        if interrupt is not None and interrupt.reader in ready:
            interrupt.check()
        try:
            return call.result()
        except ServerError as error:
            return str(error)
