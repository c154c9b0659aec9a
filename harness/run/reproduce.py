"""The cell of a record measured again, and what is equal, what differs, and what lies behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.executors.devices import cuda_tokens, kind_of
from harness.executors.job import Job
from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer
from harness.record import Record
from harness.run.interrupt import Interrupt
from harness.run.prepare import prepare_all
from harness.run.session import ensure_record
from harness.store import Store, new_run_id
from harness.store.recordfile import DamagedRecordError, NewerRecordError, decode

BLOCKS = ("fidelity", "memory", "ops", "training")
"""Blocks of a record whose numbers a second run on the same machine and code repeats exactly, but for :data:`NOISY`."""
NOISY = frozenset(
    {"seconds", "plan_seconds", "host_peak_bytes", "cuda_reserved_bytes", "cuda_facts", "nvml_process_bytes", "reasons"}
)
"""Fields of those blocks that vary from run to run."""
VOLATILE = ("load_average", "reasons", "environment.CUDA_VISIBLE_DEVICES")
"""Provenance that says nothing about why numbers differ."""


@dataclass(frozen=True)
class Difference:
    """One value in two records.

    Args:
        name: dotted path.
        before: in the record that is reproduced; None where it lacks the value.
        after: in the new record.
    """

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """One line for a person, with the ratio where both are numbers."""
        line = f"{self.name}: {self.before} -> {self.after}"
        if all(isinstance(value, int | float) for value in (self.before, self.after)) and self.before:
            line += f" (x {self.after / self.before:.6g})"
        return line


@dataclass(frozen=True)
class Comparison:
    """A record and its reproduction.

    Args:
        equal: how many values that should repeat do.
        different: those that do not.
        timing: measured times, which never repeat exactly.
        origin: what differs in code, environment and device.
        same_fingerprint: whether the numbers may be compared at all.
    """

    equal: int
    different: list[Difference]
    timing: list[Difference]
    origin: list[Difference]
    same_fingerprint: bool


def load_record(path: Path) -> Record:
    """A record file.

    Raises:
        UsageError: it cannot be read, or is no record.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (DamagedRecordError, NewerRecordError) as error:
        raise UsageError(f"{path}: no record: {error}") from None


def repeat(record: Record, store: Store, timeout_s: float, interrupt: Interrupt) -> Path:
    """Measure a record's cell again; gives the path of the new record.

    Raises:
        UsageError: the cell needs a CUDA device and there is none, or the store cannot be written.
        StoppedError: the user stopped it.
    """
    store.check_writable()
    server = ForkServer()
    with interrupt.at_once():  # the server's imports take seconds
        server.state()
    devices = cuda_tokens(server) if kind_of(record.spec) == "cuda" else ()
    if kind_of(record.spec) == "cuda" and not devices:
        raise UsageError("the record's cell needs a CUDA device, and there is none here")
    prepare_all([record.spec], server, interrupt)
    job = Job(
        spec=record.spec,
        suite=record.suite,
        suite_sha256=str(record.provenance.get("suite_sha256", "")),
        store=str(store.root),
        run_id=new_run_id(),
        timeout_s=timeout_s,
        threads=int(record.provenance.get("threads", 1)),
        device_index=None,
        strict=False,
    )
    (outcome,) = LocalExecutor(1, devices[: record.spec.devices], server=server, interrupt=interrupt).run([job])
    return ensure_record(store, outcome)


def compare(before: Record, after: Record) -> Comparison:
    """What two records of one cell have in common."""
    old, new = _leaves(before), _leaves(after)
    names = [*old, *(name for name in new if name not in old)]
    different = [Difference(name, old.get(name), new.get(name)) for name in names if not _same(old, new, name)]
    return Comparison(
        equal=len(names) - len(different),
        different=different,
        timing=list(_timing(before, after)),
        origin=list(_origin(before, after)),
        same_fingerprint=before.fingerprint == after.fingerprint,
    )


def _same(old: dict[str, Any], new: dict[str, Any], name: str) -> bool:
    if name not in old or name not in new:
        return False
    return bool(old[name] == new[name]) or (old[name] != old[name] and new[name] != new[name])  # NaN equals NaN here


def _leaves(record: Record) -> dict[str, Any]:
    dump = record.model_dump(mode="json")
    leaves = {"status": record.status, "parameters": record.parameters, "data.sha256": record.data.get("sha256")}
    leaves |= {f"phases.{name}": phase.status for name, phase in record.phases.items()}
    for block in BLOCKS:
        leaves |= dict(_flatten(block, dump[block]))
    return leaves


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in NOISY:
                yield from _flatten(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flatten(f"{name}[{index}]", inner)
    else:
        yield name, value


def _timing(before: Record, after: Record) -> Iterator[Difference]:
    if before.timing is not None and after.timing is not None:
        for field in ("step_time_s", "iqr_s", "ratio"):
            yield Difference(f"timing.{field}", getattr(before.timing, field), getattr(after.timing, field))
    for name in before.phases.keys() & after.phases.keys():
        yield Difference(f"phases.{name}.seconds", before.phases[name].seconds, after.phases[name].seconds)


def _origin(before: Record, after: Record) -> Iterator[Difference]:
    old, new = dict(_flatten("", before.provenance)), dict(_flatten("", after.provenance))
    for path in sorted(old.keys() | new.keys()):
        name = path.removeprefix(".")
        if old.get(path) != new.get(path) and not name.startswith(VOLATILE):
            yield Difference(name, old.get(path), new.get(path))
