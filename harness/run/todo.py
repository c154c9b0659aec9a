"""What a run has to do: the cells that a suite and its options select, less those that are finished."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import unknown
from harness.executors.devices import cuda_present
from harness.provenance import collect, fingerprint
from harness.record import STATUSES
from harness.run.estimate import estimates
from harness.spec import CellSpec
from harness.store import Store, Summary
from harness.suite import Suite, load
from harness.suite.schema import Profile

STALE = "stale"
"""A word for ``retry`` beside the statuses: measured with other code, environment or device."""


@dataclass(frozen=True)
class RunOptions:
    """What a user asks for.

    Args:
        suite: an installed suite's name, or a path to its file.
        store: root folder of the store.
        profile: None for the default: ``gpu`` where there is a CUDA device and the suite has it, else the first.
        only: keep cells with one of these values on each of these axes.
        jobs: CPU cells that run at the same time.
        fresh: measure finished cells again, too.
        retry: measure cells again whose latest run ended like this, or that are :data:`STALE`.
        timeout_s: a cell's time limit instead of the profile's.
        strict: refuse to time on a disturbed machine; unsupported and unavailable cells count as failures.
        order_seed: of the order of cells; drawn and recorded by default.
        entry: ``module:function`` that measures a cell.
        snapshot: write a snapshot of the CUDA allocator beside each record.
    """

    suite: str
    store: Path
    profile: str | None = None
    only: Mapping[str, list[str]] = field(default_factory=dict)
    jobs: int = 1
    fresh: bool = False
    retry: frozenset[str] = frozenset()
    timeout_s: float | None = None
    strict: bool = False
    order_seed: int | None = None
    entry: str = "harness.worker:run_cell"
    snapshot: bool = False


@dataclass(frozen=True)
class Selection:
    """The cells of a run.

    Args:
        suite: the suite.
        profile: name of the profile.
        cells: all cells that the options select.
        finished: the latest run of those that have one, by cell.
        todo: the cells to run.
        known: names of the record files that were there before, by cell.
        problems: damaged files that were met.
    """

    suite: Suite
    profile: str
    cells: tuple[CellSpec, ...]
    finished: dict[str, Summary]
    todo: tuple[CellSpec, ...]
    known: dict[str, frozenset[str]]
    problems: tuple[str, ...] = ()

    @property
    def sizes(self) -> Profile:
        """Device, threads and time limit."""
        return self.suite.profile(self.profile)


def default_profile(suite: Suite) -> str:
    """``gpu`` where there is a CUDA device and the suite has that profile, else the suite's first."""
    return "gpu" if "gpu" in suite.profiles and cuda_present() else next(iter(suite.profiles))


def select(options: RunOptions) -> Selection:
    """Expand the suite and subtract finished cells.

    Raises:
        UsageError: a wrong suite, profile, axis or status.
    """
    check_retry(options.retry)
    suite = load(options.suite)
    profile = default_profile(suite) if options.profile is None else options.profile
    cells = tuple(suite.expand(profile, dict(options.only)))
    wanted = {cell.hash for cell in cells}
    store = Store(options.store)
    known: dict[str, set[str]] = {}
    for file in store.files(suite.name):  # before the records: what appears in between counts as another run's
        known.setdefault(file.parent.name, set()).add(file.name)
    finished = {cell: latest for cell, latest in store.finished(suite.name).items() if cell in wanted}
    again = _again(options, finished, suite.profile(profile), cells)
    return Selection(
        suite,
        profile,
        cells,
        finished,
        tuple(cell for cell in cells if cell.hash not in finished or cell.hash in again),
        {cell: frozenset(names) for cell, names in known.items()},
        tuple(str(file) for file in store.damaged),
    )


def check_retry(retry: frozenset[str]) -> None:
    """Refuse words that are no status.

    Raises:
        UsageError: naming the first such word.
    """
    for word in sorted(retry - {*STATUSES, STALE}):
        raise unknown("status", word, [*STATUSES, STALE], where="--retry")


def stale(finished: Mapping[str, Summary], sizes: Profile, cells: tuple[CellSpec, ...]) -> set[str]:
    """Hashes of finished cells whose record comes from other code, another environment or another device."""
    kinds = {(cell.device, cell.devices) for cell in cells}
    here = {kind: fingerprints(kind[0], sizes.threads, kind[1]) for kind in kinds}
    now = {cell.hash: here[cell.device, cell.devices] for cell in cells}
    return {cell for cell, latest in finished.items() if latest.fingerprint not in now[cell]}


def fingerprints(device: str, threads: int, devices: int = 1) -> set[str]:
    """What a cell measured now would carry: one fingerprint for each choice of GPUs that it could run on."""
    facts = collect(device, threads)
    gpus = (facts.get("gpu") or {}).get("devices") or []
    chosen = itertools.combinations(gpus, min(devices, len(gpus))) if gpus else ()
    visible = [{**facts, "gpu": {**facts["gpu"], "devices": list(some)}} for some in chosen]
    return {fingerprint(each) for each in visible or [facts]}


def _again(options: RunOptions, finished: dict[str, Summary], sizes: Profile, cells: tuple[CellSpec, ...]) -> set[str]:
    if options.fresh:
        return set(finished)
    again = {cell for cell, latest in finished.items() if latest.status in options.retry}
    return again | stale(finished, sizes, cells) if STALE in options.retry else again


def history(options: RunOptions, selection: Selection) -> dict[str, float]:
    """Seconds that earlier runs suggest for the cells to run, by cell."""
    stored = Store(options.store).each(selection.suite.name)
    return estimates(selection.todo, (record for _, record in stored))
