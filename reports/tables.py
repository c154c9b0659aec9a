"""The method table: one per comparison group, as cells for the page and as a DataFrame for the other formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import measures
from reports.cells import Cell, absent
from reports.groups import Group, Item, Row
from reports.headings import facts
from reports.labels import Labels
from reports.links import relative
from reports.measures import Measure


@dataclass(frozen=True)
class Column:
    """A column of the method table.

    Args:
        key: name in the machine-readable formats; ends in the unit where there is one.
        title: heading on the page.
        help: what the number is, for the heading's title and the legend.
        measure: from a group's row to its cell.
        wide: left out of the Markdown and LaTeX tables.
    """

    key: str
    title: str
    help: str
    measure: Measure
    wide: bool = False


def _promised(name: str) -> Measure:
    def measure(group: Group, row: Row) -> Cell:
        value = row.promises.get(name)
        return absent("the record names no promise", row.items[0]) if value is None else Cell(value, str(value))

    return measure


def _status(group: Group, row: Row) -> Cell:
    """The row's worst status, and in which phase; a row of several records says how many failed."""
    bad = [item for item in row.items if item.record.status != "ok"]
    if not bad:
        return Cell("ok", "ok", f"{len(row.items)} record(s), all ok")
    item = next(item for item in bad if item.record.status == row.status)
    phase, reason = where_failed(item)
    share = f" ({len(bad)} of {len(row.items)})" if len(row.items) > 1 else ""
    return Cell(row.status, f"{row.status} in {phase}{share}", reason, item)


def where_failed(item: Item) -> tuple[str, str]:
    """The phase that gave a record its status, and the phase's reason.

    Args:
        item: a record that is not ok.
    """
    for name, result in item.record.phases.items():
        if result.status == item.record.status:
            return name, result.reason or "no reason given"
    return "?", "no phase of the record has its status"


COLUMNS: tuple[Column, ...] = (
    Column("gradient", "gradient", "the method's promise: equal to BPTT up to rounding (exact), or not (biased)",
           _promised("gradient")),
    Column("status", "status", "the worst of its records and the phase that gave it", _status),
    Column("peak_live_bytes", "peak MiB", "all live tensor bytes at the worst instant of one training step",
           measures.byte_count("peak_live_bytes")),
    Column("peak_less", "peak less", "baseline's peak / this peak: 2.00\u00d7 is half the bytes",
           measures.byte_ratio("peak_live_bytes")),
    Column("peak_activation_bytes", "activation MiB",
           "part of the peak that is neither parameter, gradient, optimizer, buffer nor input",
           measures.byte_count("peak_activation_bytes")),
    Column("activation_less", "activation less", "baseline's activation bytes / these: 2.00\u00d7 is half the bytes",
           measures.byte_ratio("peak_activation_bytes")),
    Column("saved_bytes", "saved MiB", "live after the forward less what was live before it and less the logits",
           measures.byte_count("saved_bytes"), wide=True),
    Column("cuda_allocated_bytes", "allocator MiB", "CUDA allocator's peak over one training step",
           measures.byte_count("cuda_allocated_bytes"), wide=True),
    Column("host_peak_bytes", "host MiB", "rise of the process's resident memory over one training step",
           measures.byte_count("host_peak_bytes"), wide=True),
    Column("step_time_s", "step ms", "median time of one training step", measures.step_time),
    Column("time_longer", "time longer", "this step time / baseline's: 2.00\u00d7 is twice the time; 95 % interval "
           "where rounds of both were interleaved, marked unpaired where not", measures.time_ratio),
    Column("energy_per_step_j", "energy J", "energy of one training step, from the device's counter", measures.energy,
           wide=True),
    Column("accuracy", "accuracy %", "test accuracy after the final epoch, mean \u00b1 95 % t-interval over n seeds",
           measures.accuracy),
    Column("accuracy_difference", "\u0394 accuracy pp",
           "mean of per-seed differences to the baseline \u00b1 95 % t-interval, percentage points",
           measures.accuracy_difference),
    Column("relative_l2", "gradient error", "relative L2 distance of the gradient to BPTT's, at initialisation",
           measures.gradient_error("initial")),
    Column("relative_l2_trained", "after training", "the same after training",
           measures.gradient_error("trained"), wide=True),
    Column("cosine", "cosine", "cosine of the gradient with BPTT's, at initialisation", measures.cosine, wide=True),
    Column("promise", "promise", "an exact method's error must not exceed max(1e-5, what rounding does to BPTT)",
           measures.promise),
    Column("model", "model", "whether the method trains the model as it is", _promised("model"), wide=True),
    Column("numerics", "numerics", "whether it computes in the given precision or in a reduced one",
           _promised("numerics"), wide=True),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row of the method table.

    Args:
        row: the records behind it.
        label: the method's short name.
        cells: one for each of :data:`COLUMNS`.
    """

    row: Row
    label: str
    cells: tuple[Cell, ...]

    def cell(self, key: str) -> Cell:
        """The cell of a column by its key."""
        return next(cell for column, cell in zip(COLUMNS, self.cells, strict=True) if column.key == key)

    @property
    def reconstruction(self) -> bool:
        """Whether the method is our reading of a paper whose own equations are not available."""
        return bool(self.row.promises.get("reconstruction", False))


@dataclass(frozen=True)
class Table:
    """The method table of one comparison group."""

    group: Group
    lines: tuple[Line, ...]


def method_table(group: Group, labels: Labels) -> Table:
    """Measure every column for every row of a group.

    Args:
        group: rows that may share ratios.
        labels: short names for the page.
    """
    lines = [
        Line(row, labels.method(row.spec), tuple(column.measure(group, row) for column in COLUMNS))
        for row in group.rows
    ]
    return Table(group, tuple(lines))


def frame(tables: Sequence[Table], labels: Labels, base: Path) -> pd.DataFrame:
    """All method tables as one DataFrame of raw values, one line a method and group.

    Columns are the group's facts, ``method``, ``stale``, ``reconstruction``, every column's value by its key, behind
    it intervals and counts as ``KEY_low``, ``KEY_high``, ``KEY_seeds``, marks as ``KEY_marks``, then the ``reasons``
    of what is absent, and the ``records``.

    Args:
        tables: from :func:`method_table`.
        labels: short names.
        base: folder that record paths are relative to.
    """
    lines = []
    for table in tables:
        spec = table.group.spec
        shared = facts(table.group, labels) | {"model": spec.model.label, "data": spec.data.label}
        for line in table.lines:
            lines.append({**shared, **_raw(line), "records": _paths(line.row, base)})
    found = pd.DataFrame(lines).convert_dtypes()
    return found[sorted(map(str, found.columns), key=_place)]


def _place(name: Any) -> int:
    """Where a column of the frame belongs: what describes the row, measures in order, reasons and records."""
    keys = [name_of(column) for column in COLUMNS]
    # Of two keys that fit, the longer is meant: accuracy_difference_low is not accuracy's.
    fits = [key for key in keys if name == key or name.startswith(f"{key}_")]
    if fits:
        return 1 + keys.index(max(fits, key=len))
    return len(keys) + 1 if name in ("reasons", "records") else 0


def name_of(column: Column) -> str:
    """A column's name in the frame, where ``model`` is the network."""
    return "model_promise" if column.key == "model" else column.key


def _raw(line: Line) -> dict[str, object]:
    method = line.row.spec.method.label
    raw: dict[str, object] = {"method": method, "baseline": line.row.spec.baseline, "stale": line.row.items[0].stale}
    raw["reconstruction"] = line.reconstruction
    for column, cell in zip(COLUMNS, line.cells, strict=True):
        raw[name_of(column)] = cell.value
        raw.update({f"{column.key}_{suffix}": value for suffix, value in cell.extra.items()})
        if cell.marks:
            raw[f"{column.key}_marks"] = " ".join(cell.marks)
    blank = [(name_of(column), cell) for column, cell in zip(COLUMNS, line.cells, strict=True) if cell.value is None]
    raw["reasons"] = "; ".join(f"{name}: {cell.title}" for name, cell in blank)
    return raw


def _paths(row: Row, base: Path) -> str:
    return " ".join(relative(item.path, base) for item in row.items)
