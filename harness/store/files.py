"""A folder of records: ``<root>/<suite>/<cell>/<run id>.json``, with long series in ``<run id>.parquet`` beside.

No lock and no server: a file appears whole under its final name or not at all, and every run has a name of its own, so
any number of processes and machines may write to one store on a shared file system.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UsageError
from harness.record import Record, Status
from harness.store.disk import move_aside, sweep, write_atomic
from harness.store.recordfile import DamagedRecordError, NewerRecordError, decode, encode
from harness.store.series import read_series, write_series

if TYPE_CHECKING:
    import pandas as pd

    from harness.store.merge import Merged
    from harness.store.verify import Problem

DAMAGED = "_damaged"
"""Folder inside a store for files that are no records; names with an underscore first are never suites."""
CONFLICTS = "_conflicts"
"""Folder inside a store for records whose run id another content already has."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a suite and a run may be called: they name folders and files."""


class Stored(NamedTuple):
    """A record and the file that holds it."""

    path: Path
    record: Record


@dataclass(frozen=True)
class Damaged:
    """A file that could not be read as a record.

    Args:
        path: where it was found.
        moved_to: where it was set aside, or None: it stayed (a newer version's, or the store is read-only).
        reason: what is wrong with it.
    """

    path: Path
    moved_to: Path | None
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        place = f"set aside as {self.moved_to}" if self.moved_to else "left in place"
        return f"{self.path}: {self.reason} ({place})"


@dataclass(frozen=True)
class Summary:
    """What deciding about a cell needs: how its latest run ended, and on what code and device."""

    cell: str
    run_id: str
    status: Status
    phases: dict[str, Status]
    fingerprint: str
    created: str
    path: Path


def new_run_id(now: datetime | None = None) -> str:
    """A name that no other run has: UTC to the second, and eight random hex digits."""
    return f"{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


class Store:
    """Reads and writes a folder of records.

    Args:
        root: the folder; made by the first :meth:`write`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._damaged: dict[Path, Damaged] = {}

    @property
    def damaged(self) -> list[Damaged]:
        """Files that this object found unreadable so far."""
        return list(self._damaged.values())

    def check_writable(self) -> None:
        """Fail now rather than after the first measurement.

        Raises:
            UsageError: nothing can be written here.
        """
        probe = self.root / f".probe-{secrets.token_hex(4)}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, record: Record, series: dict[str, list[Any]] | None = None) -> Path:
        """Store a record atomically, its full series first.

        Args:
            record: the result of a cell.
            series: long series in full, by name; a Parquet file beside the record.

        Returns:
            The record's path.

        Raises:
            UsageError: the store cannot be written, or a name is no file name.
            FileExistsError: this run has been written; a run is never overwritten.
            DamagedRecordError: the record would not pass on reading.
        """
        path = self.path_of(record)
        data = encode(record)
        if path.exists():
            raise FileExistsError(f"{path} exists: a run is written once")
        try:
            if series:
                write_atomic(path.with_suffix(".parquet"), lambda file: write_series(file, series))
            return write_atomic(path, lambda file: file.write_bytes(data))
        except OSError as error:
            raise self._unwritable(error) from None

    def path_of(self, record: Record) -> Path:
        """Where a record belongs.

        Raises:
            UsageError: its suite or run id cannot name a file.
        """
        for key, name in (("suite", record.suite), ("run id", record.run_id)):
            if not SAFE.fullmatch(name):
                raise UsageError(f"{key} {name!r}: allowed are letters, digits, '.', '_', '-'; a letter or digit first")
        return self.root / record.suite / record.cell / f"{record.run_id}.json"

    def suites(self) -> list[str]:
        """Suites that have a folder here, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and SAFE.fullmatch(p.name))

    def files(self, suite: str | None = None) -> list[Path]:
        """Paths of all record files, of one suite or of all, sorted; nothing is opened."""
        names = self.suites() if suite is None else [suite]
        return [Path(path) for name in names for path in sorted(_json_files(self.root / name))]

    def records(self, suite: str | None = None) -> list[Stored]:
        """All readable records, of one suite or of all; the others are set aside and listed in :attr:`damaged`.

        Raises:
            UsageError: there is no such folder.
        """
        with uncollected():
            return list(self.stream(suite))

    def stream(self, suite: str | None = None) -> Iterator[Stored]:
        """Like :meth:`records`, one at a time.

        Raises:
            UsageError: there is no such folder.
        """
        if not self.root.is_dir():
            raise UsageError(f"store {self.root}: no such folder")
        return self.each(suite)

    def each(self, suite: str | None = None) -> Iterator[Stored]:
        """Like :meth:`stream`; nothing where there is no folder."""
        for path in self.files(suite):
            record = self.read(path)
            if record is not None:
                yield Stored(path, record)

    def read(self, path: Path) -> Record | None:
        """One record; None where the file is gone, damaged (then set aside) or from a newer version (then left)."""
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:
            return None  # another reader has set it aside
        except (NewerRecordError, OSError) as error:
            self._damaged[path] = Damaged(path, None, str(error))
        except DamagedRecordError as error:
            self._damaged[path] = self._set_aside(path, str(error))
        return None

    def series(self, path: Path) -> dict[str, list[Any]]:
        """The full series of the record at ``path``; empty where it has none.

        Raises:
            OSError: the Parquet file is damaged.
        """
        file = path.with_suffix(".parquet")
        return read_series(file) if file.exists() else {}

    def finished(self, suite: str) -> dict[str, Summary]:
        """The latest run of every cell of a suite that has one, by cell; old temporary files are swept on the way."""
        folder = self.root / suite
        if folder.is_dir():
            sweep(folder)
        latest: dict[str, Summary] = {}
        for path, record in self.each(suite):
            known = latest.get(record.cell)
            if known is None or is_later(record, known):
                latest[record.cell] = _summary(path, record)
        return latest

    def frame(self, suite: str | None = None, all_runs: bool = False) -> pd.DataFrame:
        """A tidy frame, one row a record: :func:`harness.store.frame.frame`."""
        from harness.store.frame import frame  # pandas takes long to import, and a worker has no use for it

        return frame(self.stream(suite), all_runs=all_runs)

    def export(self, dest: Path | str, suite: str | None = None, all_runs: bool = False) -> Path:
        """Write the frame to ``.parquet`` or ``.csv``: :func:`harness.store.frame.export`."""
        from harness.store.frame import export

        return export(self.frame(suite, all_runs), Path(dest))

    def merge(self, sources: Iterable[Path | str]) -> Merged:
        """Copy the records that this store lacks from others: :func:`harness.store.merge.merge`."""
        from harness.store.merge import merge

        return merge(self, [Path(source) for source in sources])

    def verify(self) -> list[Problem]:
        """Everything wrong in this store: :func:`harness.store.verify.verify`."""
        from harness.store.verify import verify

        return verify(self)

    def _set_aside(self, path: Path, reason: str) -> Damaged:
        target = self.root / DAMAGED / path.relative_to(self.root)
        try:
            moved = move_aside(path, target)
            moved.with_name(f"{moved.name}.reason.txt").write_text(f"{reason}\n", encoding="utf-8")
            beside = path.with_suffix(".parquet")
            if beside.exists():
                move_aside(beside, target.with_suffix(".parquet"))
        except OSError as error:
            return Damaged(path, None, f"{reason}; it cannot be moved: {error.strerror}")
        return Damaged(path, moved, reason)

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"store {self.root}: cannot write: {error.strerror or error}; give another folder with --store"
        )


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, for building many objects that stay.

    The collector walks everything alive again and again while a store loads, and finds nothing: records hold no cycles.
    Seen for 10,000 records: 17 s with it, 2 s without. At the end all goes to the oldest generation, unwalked.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()


def is_later(record: Record, other: Record | Summary) -> bool:
    """Whether ``record`` is the later run of the two."""
    return (record.created, record.run_id) > (other.created, other.run_id)


def _json_files(suite: Path) -> Iterator[str]:
    if not suite.is_dir():
        return
    with os.scandir(suite) as cells:
        for cell in cells:
            if cell.is_dir():
                with os.scandir(cell.path) as files:  # several times faster than Path.iterdir, as text is to sort
                    yield from (f.path for f in files if f.name.endswith(".json") and f.name[0] != ".")


def _summary(path: Path, record: Record) -> Summary:
    phases = {name: phase.status for name, phase in record.phases.items()}
    return Summary(record.cell, record.run_id, record.status, phases, record.fingerprint, record.created, path)
