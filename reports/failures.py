"""Every cell that did not end well: where, why, and with how many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.record import WORST_FIRST, PhaseResult
from reports.cells import Cell, mib
from reports.groups import Item
from reports.labels import Labels
from reports.view import Grid, Head, number, text

HEADS = (
    Head("status"), Head("phase"), Head("method"), Head("model"), Head("data"), Head("T", numeric=True),
    Head("batch", numeric=True), Head("seed", numeric=True), Head("loss"), Head("precision"), Head("device"),
    Head("requested MiB", "bytes of the allocation that failed, where the error names them", numeric=True),
    Head("after s", "seconds that the phase took", numeric=True), Head("reason"),
)  # fmt: skip
LONGEST = 240
"""Characters of a reason that are shown; the record and the title have all of it."""


def failures(items: Sequence[Item], labels: Labels) -> Grid:
    """One row for each phase that did not end well, the worst statuses first.

    Args:
        items: all records.
        labels: short names.
    """
    bad = [(item, name, phase) for item in items for name, phase in _bad_phases(item)]
    bad.sort(key=lambda entry: (WORST_FIRST.index(entry[2].status), entry[0].record.spec.label()))
    return Grid("failures", HEADS, [_row(item, name, phase, labels) for item, name, phase in bad])


def _bad_phases(item: Item) -> Iterator[tuple[str, PhaseResult]]:
    phases = [(name, phase) for name, phase in item.record.phases.items() if phase.status != "ok"]
    if not phases and item.record.status != "ok":
        phases = [("?", PhaseResult(status=item.record.status, reason="no phase of the record has its status"))]
    yield from phases


def _row(item: Item, name: str, phase: PhaseResult, labels: Labels) -> list[Cell]:
    spec = item.record.spec
    reason = phase.reason or "no reason given"
    short = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
    requested = phase.bytes_requested
    return [
        Cell(phase.status, phase.status, "stale" if item.stale else "", item, {"stale": "stale"} if item.stale else {}),
        text(name),
        *(text(labels.short(kind, getattr(spec, kind))) for kind in ("method", "model", "data")),
        *(number(value, str(value)) for value in (spec.T, spec.batch, spec.seed)),
        text(spec.loss.kind), text(spec.precision),
        text(f"{spec.device}, predicted" if spec.predicted else spec.device_label),
        number(requested, mib(requested or 0), "the error names no bytes"),
        number(phase.seconds, f"{phase.seconds or 0:.1f}", "not known"),
        Cell(reason, short, reason if short != reason else ""),
    ]  # fmt: skip
