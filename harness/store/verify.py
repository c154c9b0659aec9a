"""Check a store: every hash, schema, name and series file. Reads only; nothing is moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.record import Record
from harness.store.disk import SUFFIX
from harness.store.files import CONFLICTS, DAMAGED, Store
from harness.store.recordfile import DamagedRecordError, NewerRecordError, decode
from harness.store.series import read_series


@dataclass(frozen=True)
class Problem:
    """Something wrong in a store.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.path}: {self.reason}"


def verify(store: Store) -> list[Problem]:
    """All problems of a store, by path; none means that every record can be trusted to be what was written.

    Raises:
        UsageError: the store does not exist.
    """
    if not store.root.is_dir():
        raise UsageError(f"store {store.root}: no such folder")
    records = store.files()
    problems = [Problem(path, reason) for path in records for reason in _record_faults(store, path)]
    problems += [Problem(path, reason) for path, reason in _strays(store, {p.with_suffix("") for p in records})]
    return sorted(problems, key=lambda problem: (str(problem.path), problem.reason))


def _record_faults(store: Store, path: Path) -> Iterator[str]:
    try:
        record = decode(path.read_bytes())
    except (DamagedRecordError, NewerRecordError, OSError) as error:
        yield str(error)
        return
    yield from _name_faults(store, path, record)
    series = path.with_suffix(".parquet")
    if series.exists():
        try:
            read_series(series)
        except OSError as error:
            yield f"its series cannot be read: {error}"


def _name_faults(store: Store, path: Path, record: Record) -> Iterator[str]:
    suite, cell, _ = path.relative_to(store.root).parts
    if path.stem != record.run_id:
        yield f"the file is called {path.stem}, its run id is {record.run_id}"
    if cell != record.cell:
        yield f"the folder is {cell}, its cell is {record.cell}"
    if suite != record.suite:
        yield f"the folder is {suite}, its suite is {record.suite}"


def _strays(store: Store, known: set[Path]) -> Iterator[tuple[Path, str]]:
    for path in store.root.rglob("*"):
        if not path.is_file() or path.name.endswith(".reason.txt"):
            continue
        top = path.relative_to(store.root).parts[0]
        if top == DAMAGED:
            yield path, "was set aside as damaged"
        elif top == CONFLICTS:
            yield path, "another content has this run id: decide which is right and delete the other"
        elif path.name.startswith(".") and path.name.endswith(SUFFIX):
            yield path, "left by a writer that was killed, or is being written now"
        elif path.suffix == ".parquet" and path.with_suffix("") not in known:
            yield path, "a series without its record"
