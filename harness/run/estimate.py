"""How long cells will take, from the records of earlier runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median

from harness.record import Record
from harness.spec import CellSpec


def wall_s(record: Record) -> float:
    """Wall time of a record's cell: the sum of its phases."""
    return sum(phase.seconds or 0.0 for phase in record.phases.values())


def estimates(cells: Iterable[CellSpec], records: Iterable[Record]) -> dict[str, float]:
    """Seconds that each cell will take, by hash, for those that earlier records say something about.

    The nearest kin counts: the same cell, else one of another seed, else one of another method.
    """
    known: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        for key in _kinship(record.spec):
            known[key].append(wall_s(record))
    found = {}
    for cell in cells:
        nearest = next((known[key] for key in _kinship(cell) if key in known), None)
        if nearest is not None:
            found[cell.hash] = median(nearest)
    return found


def _kinship(spec: CellSpec) -> Iterator[str]:
    yield spec.hash
    yield spec.group("seed")
    yield spec.group("seed", "method", "baseline")
