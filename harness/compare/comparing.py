"""Cells of two stores by identity: missing, new, failed now, fixed, changed, same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.compare.measures import METRICS, Delta, Limits, deltas
from harness.compare.places import Difference, differences
from harness.compare.seeds import accuracy, trained
from harness.compare.sides import Noise, Shift
from harness.compare.times import Key, Times
from harness.record import Record, Status
from harness.spec import CellSpec

Kind = Literal["failed now", "missing", "changed", "fixed", "new", "same"]
KINDS: tuple[Kind, ...] = ("failed now", "missing", "changed", "fixed", "new", "same")
"""In the order of a table."""
NEAR = 20
"""Cells of B that :func:`nearest` looks at (our choice: in a store that shares nothing, each is as good as another)."""


@dataclass(frozen=True)
class Row:
    """One cell, or the trainings of a cell over its seeds.

    Args:
        suite: its suite.
        spec: its identity; over seeds that of the lowest one.
        kind: ``missing``: only in A; ``new``: only in B; ``failed now``: a phase that was ok in A is not in B;
            ``fixed``: the other way round; ``changed``: a measure moved; ``same``.
        before: status in A; None where A lacks it, or over seeds.
        after: status in B.
        failed: phases that are ok in A and not in B.
        fixed: phases that are ok in B and not in A.
        deltas: measures that at least one side has.
    """

    suite: str
    spec: CellSpec
    kind: Kind
    before: Status | None = None
    after: Status | None = None
    failed: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    deltas: tuple[Delta, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether it speaks against B."""
        return self.kind == "failed now" or any(delta.verdict == "worse" for delta in self.deltas)


@dataclass(frozen=True)
class Comparison:
    """Two stores.

    Args:
        rows: of every cell, and of every cell that was trained over its seeds; by kind, then in A's order.
        shared: how many cells are in both.
        shifts: how the baselines' own times moved.
        noise: what chance does to the ratios.
        ratio_limits: of every judged ratio, the factor from where on it is worse or better; ascending.
        places: what of machine, environment and code differs between cells that are in both.
    """

    rows: tuple[Row, ...]
    shared: int
    shifts: tuple[Shift, ...] = ()
    noise: Noise | None = None
    ratio_limits: tuple[float, ...] = ()
    places: tuple[Difference, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """How many rows there are of each kind."""
        return Counter(row.kind for row in self.rows)

    @property
    def worse(self) -> list[Row]:
        """Rows that speak against B."""
        return [row for row in self.rows if row.worse]


def compare(
    before: Iterable[Record],
    after: Iterable[Record],
    limits: Limits | None = None,
    metrics: Iterable[str] = METRICS,
) -> Comparison:
    """What changed from one set of records to another.

    Args:
        before: of store A; of several runs of a cell the latest counts, and times are averaged over those of its code.
        after: of store B.
        limits: from where on a change counts; default: :class:`Limits`.
        metrics: which measures, names of :data:`METRICS`.
    """
    limits, wanted = limits or Limits(), frozenset(metrics)
    runs = histories(before), histories(after)
    old, new = ({key: found[-1] for key, found in side.items()} for side in runs)
    times = Times(*runs, limits)
    keys = [*old, *(key for key in new if key not in old)]
    rows = [_row(old.get(key), new.get(key), wanted, limits, times) for key in keys]
    if "accuracy" in wanted:
        rows += _over_seeds(list(old.values()), list(new.values()), limits)
    rows.sort(key=lambda row: KINDS.index(row.kind))
    moved = tuple(times.shifts) if {"ratio", "time"} & wanted else ()
    limited = tuple(times.limits()) if "ratio" in wanted else ()
    places = tuple(differences((old[key], new[key]) for key in old if key in new))
    return Comparison(tuple(rows), len(old.keys() & new.keys()), moved, times.noise, limited, places)


def nearest(before: Iterable[Record], after: Iterable[Record]) -> list[str]:
    """In which fields of their specs the two most similar cells of two stores differ; none where a store is empty.

    For stores that share no cell: a changed default, or another recipe, makes every cell another one.

    Args:
        before: records of A.
        after: records of B.
    """
    found = list(after)
    pairs = [_fields(one.spec, other.spec) for one in before for other in found[:NEAR]]
    return min(pairs, key=len, default=[])


def histories(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """The latest record of each cell of a suite, behind its earlier runs under the same fingerprint."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        found.setdefault((record.suite, record.cell), []).append(record)
    for key, runs in found.items():
        runs.sort(key=lambda record: (record.created, record.run_id))
        found[key] = [record for record in runs if record.fingerprint == runs[-1].fingerprint]
    return found


def _fields(one: CellSpec, other: CellSpec) -> list[str]:
    return [name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]


def _row(before: Record | None, after: Record | None, wanted: frozenset[str], limits: Limits, times: Times) -> Row:
    if before is None or after is None:
        return _only(before, after)
    failed, fixed = _lost(before, after), _lost(after, before)
    key = before.suite, before.cell
    unsorted = [*deltas(before, after, wanted, limits), *times.deltas(key, wanted)]
    found = tuple(sorted(unsorted, key=lambda delta: METRICS.index(delta.metric)))
    if failed or fixed:
        kind: Kind = "failed now" if failed else "fixed"
    else:
        kind = "changed" if before.status != after.status else _moved(found)
    return Row(before.suite, before.spec, kind, before.status, after.status, failed, fixed, found)


def _only(before: Record | None, after: Record | None) -> Row:
    if before is not None:
        return Row(before.suite, before.spec, "missing", before=before.status)
    assert after is not None
    return Row(after.suite, after.spec, "new", after=after.status)


def _lost(one: Record, other: Record) -> tuple[str, ...]:
    """Phases that are ok in ``one`` and not in ``other``."""
    if other.status == "ok":
        return ()
    ended = {name: phase.status for name, phase in other.phases.items()}
    lost = tuple(name for name, phase in one.phases.items() if phase.status == "ok" != ended.get(name))
    # A process that died may have left no phases.
    return lost or (("cell",) if one.status == "ok" else ())


def _moved(found: Sequence[Delta]) -> Kind:
    return "changed" if any(delta.verdict in ("worse", "better", "changed") for delta in found) else "same"


def _over_seeds(before: Sequence[Record], after: Sequence[Record], limits: Limits) -> list[Row]:
    old, new = trained(before), trained(after)
    specs: dict[Key, CellSpec] = {}
    for record in sorted(before, key=lambda r: r.spec.seed):
        specs.setdefault((record.suite, record.spec.group("seed")), record.spec)
    rows = []
    for group in old.keys() & new.keys():
        delta = accuracy(old[group], new[group], limits)
        if delta is not None:
            rows.append(Row(group[0], specs[group], _moved([delta]), deltas=(delta,)))
    return sorted(rows, key=lambda row: (row.suite, row.spec.canonical()))
