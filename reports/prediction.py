"""Predicted against measured peaks of the same cells: on a CPU they agree to the byte."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.spec import CellSpec
from reports.cells import Cell, absent, mib
from reports.groups import Item
from reports.labels import Labels
from reports.measures import memory_of
from reports.view import Grid, Head, number, text, without_unasked

HEADS = (
    Head("method"), Head("model"), Head("data"), Head("T", numeric=True), Head("batch", numeric=True),
    Head("device"), Head("precision"),
    Head("predicted MiB", "peak live bytes under fake tensors", numeric=True),
    Head("measured MiB", "peak live bytes of a real step under the ledger", numeric=True),
    Head("difference bytes", "measured less predicted", numeric=True), Head("verdict"),
    Head("allocator MiB", "CUDA allocator's peak of a real step", numeric=True),
    Head("allocator / predicted", "what the ledger cannot see: workspaces, fragmentation", numeric=True),
)  # fmt: skip


def predictions(items: Sequence[Item], labels: Labels) -> Grid:
    """Every predicted cell that was also measured, differences first.

    Args:
        items: records that are not stale.
        labels: short names.
    """
    pairs = sorted(_pairs(items), key=lambda pair: (_difference(*pair) == 0, *_order(pair[0].record.spec)))
    grid = Grid("predicted", HEADS, [_row(guess, real, labels) for guess, real in pairs])
    return without_unasked(grid) if pairs else grid


def _order(spec: CellSpec) -> tuple[str, str, str, int, int, int]:
    return spec.model.label, spec.data.label, spec.method.label, spec.T, spec.batch, spec.seed


def _pairs(items: Iterable[Item]) -> list[tuple[Item, Item]]:
    """Predicted and measured records of the same cell but for phases; seeds are told apart, bytes may depend on them.

    A measurement with the prediction's fingerprint is preferred; where there is only another's, the row says so.
    """
    guesses: list[tuple[str, Item]] = []
    measured: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.record.memory is None or item.record.memory.peak_live_bytes is None:
            continue
        key = item.record.spec.group("phases", "predicted")
        if item.record.spec.predicted:
            guesses.append((key, item))
        else:
            measured[key].append(item)
    return [
        (
            guess,
            min(
                measured[key],
                key=lambda real: (real.record.fingerprint != guess.record.fingerprint, real.record.run_id),
            ),
        )
        for key, guess in guesses
        if measured[key]
    ]


def _difference(guess: Item, real: Item) -> int:
    return (memory_of(real).peak_live_bytes or 0) - (memory_of(guess).peak_live_bytes or 0)


def _row(guess: Item, real: Item, labels: Labels) -> list[Cell]:
    spec, ours = real.record.spec, memory_of(guess).peak_live_bytes or 0
    peak, difference = memory_of(real).peak_live_bytes or 0, _difference(guess, real)
    return [
        *(text(labels.short(kind, getattr(spec, kind))) for kind in ("method", "model", "data")),
        number(spec.T, str(spec.T)), number(spec.batch, str(spec.batch)), text(spec.device), text(spec.precision),
        number(ours, mib(ours), item=guess), number(peak, mib(peak), item=real),
        number(difference, f"{difference:+,}" if difference else "0", item=real), _verdict(guess, real, difference),
        *_allocator(real, ours),
    ]  # fmt: skip


def _allocator(real: Item, predicted: int) -> list[Cell]:
    """What the CUDA allocator says, and its share of the prediction; nobody asks that of a CPU."""
    allocated = memory_of(real).cuda_allocated_bytes
    if not allocated or not predicted:
        why = memory_of(real).reasons.get("cuda_allocated_bytes", "nothing was predicted to be live")
        return [absent(why, real, asked=real.record.spec.device == "cuda")] * 2
    share = allocated / predicted
    return [number(allocated, mib(allocated), item=real), number(share, f"{share:.3f}", item=real)]


def _verdict(guess: Item, real: Item, difference: int) -> Cell:
    marks = {}
    if guess.record.fingerprint != real.record.fingerprint:
        marks["environments differ"] = "predicted and measured with different code, versions or machines"
    paths = memory_of(guess).kernel_path, memory_of(real).kernel_path
    if paths[0] != paths[1]:
        marks["kernels differ"] = f"predicted with {paths[0]}, measured with {paths[1]}"
    return Cell("equal" if difference == 0 else "differs", "equal" if difference == 0 else "differs", marks=marks)
