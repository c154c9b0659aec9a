"""Bring the records of several stores into one, by run id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.store.disk import write_atomic
from harness.store.files import CONFLICTS, SAFE, Damaged, Store
from harness.store.recordfile import DamagedRecordError, NewerRecordError, decode


@dataclass(frozen=True)
class Conflict:
    """One run id, two contents.

    Args:
        here: the record that the store had.
        there: the record of the source.
        kept_as: where the source's was put.
    """

    here: Path
    there: Path
    kept_as: Path

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.there} differs from {self.here}: kept as {self.kept_as}"


@dataclass
class Merged:
    """What a merge did.

    Args:
        copied: new records, by their path in the store.
        skipped: number of records that the store had already.
        conflicts: records whose run id the store has with another content.
        damaged: files of the sources that are no record; nothing in a source is touched.
    """

    copied: list[Path] = field(default_factory=list)
    skipped: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)


def merge(into: Store, sources: Iterable[Path]) -> Merged:
    """Copy the records that ``into`` lacks, with their series.

    Args:
        into: the store that grows.
        sources: folders of stores; they stay as they are.

    Raises:
        UsageError: a source is no store or is ``into`` itself, or ``into`` cannot be written.
    """
    stores = [Store(source) for source in sources]
    for source in stores:
        _check(into, source)
    into.check_writable()
    result = Merged()
    for source in stores:
        for path in source.files():
            _take(into, source, path, result)
    return result


def _check(into: Store, source: Store) -> None:
    if not source.root.is_dir():
        raise UsageError(f"{source.root}: no such folder; a store holds <suite>/<cell>/<run id>.json")
    if into.root.exists() and source.root.samefile(into.root):
        raise UsageError(f"{source.root}: a store cannot be merged into itself")
    if not source.files() and any(SAFE.fullmatch(entry.name) for entry in source.root.iterdir()):
        raise UsageError(f"{source.root}: not a store: it has files, but no <suite>/<cell>/<run id>.json")


def _take(into: Store, source: Store, path: Path, result: Merged) -> None:
    data = path.read_bytes()
    try:
        target = into.path_of(decode(data))
    except (DamagedRecordError, NewerRecordError, UsageError) as error:
        result.damaged.append(Damaged(path, None, str(error)))
        return
    if not target.exists():
        _copy(path, target, data)
        result.copied.append(target)
    elif _same(path, target, data):
        _copy_series(path, target)
        result.skipped += 1
    else:
        result.conflicts.append(Conflict(target, path, _keep(into, path, data)))


def _copy(path: Path, target: Path, data: bytes) -> None:
    _copy_series(path, target)
    write_atomic(target, lambda file: file.write_bytes(data))


def _copy_series(path: Path, target: Path) -> None:
    series, wanted = path.with_suffix(".parquet"), target.with_suffix(".parquet")
    if series.exists() and not wanted.exists():
        write_atomic(wanted, lambda file: file.write_bytes(series.read_bytes()))


def _same(path: Path, target: Path, data: bytes) -> bool:
    """Equal in content: the JSON's layout does not count, a series that one side lacks neither."""
    known = target.read_bytes()
    if known != data and _plain(known) != _plain(data):
        return False
    ours, theirs = target.with_suffix(".parquet"), path.with_suffix(".parquet")
    return not (ours.exists() and theirs.exists()) or ours.read_bytes() == theirs.read_bytes()


def _plain(data: bytes) -> str | None:
    """The content with its keys sorted, as text: NaN equals NaN there; None where the bytes are no JSON."""
    try:
        return json.dumps(json.loads(data), sort_keys=True)
    except ValueError:
        return None


def _keep(into: Store, path: Path, data: bytes) -> Path:
    """Put a conflicting record where no reader takes it for a run; the same one twice gives one file."""
    series = path.with_suffix(".parquet")
    content = hashlib.sha256(data + (series.read_bytes() if series.exists() else b"")).hexdigest()[:8]
    folder = into.root / CONFLICTS / path.parts[-3] / path.parts[-2]
    target = folder / f"{path.stem}.{content}.json"
    if not target.exists():
        _copy(path, target, data)
    return target
