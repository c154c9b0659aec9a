"""The ledger's peak beside CUDA's allocator: what a model of the allocator and cuBLAS's workspaces explain, what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from reports.cells import Cell, absent, mib, percent
from reports.groups import Item
from reports.labels import Labels
from reports.measures import memory_of
from reports.view import Grid, Head, number, text

TOLERANCE = 0.03
"""Share of the allocator's peak by which ledger and allocator may differ before the row is marked (our goal)."""
HEADS = (
    Head("method"), Head("model"), Head("data"), Head("T", numeric=True), Head("batch", numeric=True), Head("precision"),
    Head("seed", numeric=True),
    Head("ledger MiB", "peak live bytes: every tensor's storage, in blocks of 512 bytes", numeric=True),
    Head("modelled MiB", "the same storages in a model of CUDA's caching allocator", numeric=True),
    Head("workspaces MiB", "cuBLAS's, which come from the allocator and are no tensors", numeric=True),
    Head("allocator MiB", "peak of max_memory_allocated over the same step, untracked", numeric=True),
    Head("difference %", "allocator less ledger, over the allocator", numeric=True),
    Head("unexplained %", "allocator less model less workspaces, over the allocator", numeric=True),
    Head("reserved MiB", "what the allocator holds, used or not", numeric=True),
    Head("requested MiB", "before the allocator rounds", numeric=True),
    Head("process MiB", "NVML: all of the process on the GPU, with the CUDA context", numeric=True),
    Head("device rise MiB", "NVML: the whole device after the step less before it, other processes included",
         numeric=True),
    Head("kernels"), Head("snapshot", "of the allocator's history over a step, for https://pytorch.org/memory_viz"),
)  # fmt: skip


def allocator(items: Sequence[Item], labels: Labels) -> Grid:
    """Every cell whose step ran on a GPU, the largest difference first.

    Args:
        items: records that are not stale.
        labels: short names.
    """
    seen = [item for item in items if item.record.memory and item.record.memory.cuda_allocated_bytes]
    seen.sort(key=lambda item: (-abs(_difference(item) or 0.0), str(item.path)))
    return Grid("allocator", HEADS, [_row(item, labels) for item in seen])


def snapshots(items: Iterable[Item]) -> list[Item]:
    """The allocator snapshots beside the records, each as its record's item with the snapshot's path.

    Args:
        items: records.
    """
    return [found for item in items if (found := _snapshot(item)) is not None]


def _snapshot(item: Item) -> Item | None:
    name = item.record.memory and item.record.memory.cuda_facts.get("snapshot")
    if not name:
        return None
    file = item.path.with_name(str(name))
    return dataclasses.replace(item, path=file) if file.is_file() else None


def _difference(item: Item) -> float | None:
    memory = memory_of(item)
    if memory.peak_live_bytes is None or not memory.cuda_allocated_bytes:
        return None
    return (memory.cuda_allocated_bytes - memory.peak_live_bytes) / memory.cuda_allocated_bytes


def _row(item: Item, labels: Labels) -> list[Cell]:
    spec, memory = item.record.spec, memory_of(item)
    facts = memory.cuda_facts
    peak = memory.peak_live_bytes
    return [
        *(text(labels.short(kind, getattr(spec, kind))) for kind in ("method", "model", "data")),
        number(spec.T, str(spec.T)), number(spec.batch, str(spec.batch)), text(spec.precision),
        number(spec.seed, str(spec.seed)),
        absent(memory.reasons.get("peak_live_bytes", "not counted"), item) if peak is None else _mib(peak, "", item),
        _mib(facts.get("modelled_allocated_bytes"), "the ledger does not count this method", item),
        _mib(facts.get("workspace_bytes"), "this torch cannot free them to see", item),
        _mib(memory.cuda_allocated_bytes, "", item), _share(_difference(item), item, "the ledger counted nothing", True),
        _share(_unexplained(item), item, "the ledger counted nothing"),
        _mib(memory.cuda_reserved_bytes, "", item), _mib(memory.cuda_requested_bytes, "", item),
        _mib(memory.nvml_process_bytes, memory.reasons.get("nvml_process_bytes", ""), item),
        _mib(facts.get("nvml_device_delta_bytes"), str(facts.get("nvml_device_reason", "not in the record")), item),
        text(memory.kernel_path), _link(item),
    ]  # fmt: skip


def _unexplained(item: Item) -> float | None:
    memory = memory_of(item)
    modelled = memory.cuda_facts.get("modelled_allocated_bytes")
    if modelled is None or not memory.cuda_allocated_bytes:
        return None
    explained = modelled + (memory.cuda_facts.get("workspace_bytes") or 0)
    return float((memory.cuda_allocated_bytes - explained) / memory.cuda_allocated_bytes)


def _mib(value: int | None, reason: str, item: Item) -> Cell:
    return absent(reason, item) if value is None else Cell(value, mib(value), f"{value:,} bytes", item)


def _share(value: float | None, item: Item, reason: str, judged: bool = False) -> Cell:
    if value is None:
        return absent(reason, item)
    why = f"more than {TOLERANCE:.0%} of the allocator's peak"
    marks = {"differs": why} if judged and abs(value) > TOLERANCE else {}
    return Cell(value, percent(value), item=item, marks=marks)


def _link(item: Item) -> Cell:
    found = _snapshot(item)
    if found is None:
        return absent("none was taken (snnbench run --snapshot), or the file is gone")
    return Cell(None, "", "open at https://pytorch.org/memory_viz", links=(("snapshot", found),))
