"""Who is measuring a cell right now: claim files keep two runs on one store from measuring a cell twice.

A claim is a file created exclusively. It names the process that holds it; a claim of a dead process is taken over. On
another machine or in another container a process's life cannot be seen, so a claim also carries a time after which its
cell must have ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = ".claims"
"""Inside the store."""

GRACE_S = 120.0
"""Added to a cell's time limit for a claim that is judged by its age: start-up, and clocks that differ."""


@dataclass(frozen=True)
class Owner:
    """A process, told from all others.

    Args:
        host: hash of the machine's name.
        boot: the kernel's id of this boot.
        namespace: the PID namespace that ``pid`` counts in.
        pid: process id.
        start: when it started, in clock ticks after boot; None where procfs is absent.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: int | None

    def dead(self, here: Owner) -> bool | None:
        """Whether the process has ended, as seen from ``here``; None when that cannot be seen."""
        if self.host != here.host:
            return None
        if self.boot != here.boot:
            return True
        if self.namespace != here.namespace:
            return None
        return not _exists(self.pid) or start_time(self.pid) != self.start


@dataclass(frozen=True)
class Claim:
    """The content of a claim file.

    Args:
        owner: the run that holds the claim.
        token: tells two claims of one owner apart.
        until: Unix time after which the cell must have ended.
    """

    owner: Owner
    token: str
    until: float

    def stale(self, here: Owner, now: float) -> bool:
        """Whether nobody measures this cell any more."""
        dead = self.owner.dead(here)
        return now > self.until if dead is None else dead


class Claims:
    """The claims of one run on a store.

    Args:
        store: the store's root folder.
    """

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER
        self.here = this_process()
        self._mine: dict[str, Claim] = {}

    def take(self, cell: str, timeout_s: float) -> Claim | None:
        """Claim a cell: None on success, else the live claim that stands in the way.

        Args:
            cell: the cell's hash.
            timeout_s: the cell's time limit.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = Claim(self.here, uuid.uuid4().hex, time.time() + timeout_s + GRACE_S)
        if not self._create(cell, claim):
            other = self._replace_stale(cell, claim)
            if other is not None:
                return other
        self._mine[cell] = claim
        return None

    def release(self, cell: str) -> None:
        """Give a claim back; nothing happens when it was taken over in between."""
        claim = self._mine.pop(cell, None)
        if claim is not None:
            with self._lock():
                if self._read(cell) == claim:
                    self._file(cell).unlink()

    def release_all(self) -> None:
        """Give every claim of this run back."""
        for cell in list(self._mine):
            self.release(cell)

    def holder(self, cell: str) -> Claim | None:
        """The live claim on a cell, if there is one."""
        claim = self._read(cell)
        return None if claim is None or claim.stale(self.here, time.time()) else claim

    def _create(self, cell: str, claim: Claim) -> bool:
        """Publish a complete claim file if there is none: a link appears at once, or not at all."""
        draft = self._draft(claim)
        try:
            os.link(draft, self._file(cell))
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _replace_stale(self, cell: str, claim: Claim) -> Claim | None:
        """Take over under a lock, else the second of two runs that saw the same stale claim would take the first's."""
        with self._lock():
            other = self._read(cell)
            if other is not None and not other.stale(self.here, time.time()):
                return other
            self._draft(claim).replace(self._file(cell))
        return None

    def _draft(self, claim: Claim) -> Path:
        draft = self.folder / f"{claim.token}.draft"
        draft.write_text(json.dumps(asdict(claim)))
        return draft

    def _read(self, cell: str) -> Claim | None:
        try:
            fields = json.loads(self._file(cell).read_text())
            return Claim(Owner(**fields["owner"]), fields["token"], fields["until"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # released, or no claim: somebody edited it

    def _file(self, cell: str) -> Path:
        return self.folder / f"{cell}.json"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "takeover.lock").open("w") as lock:
            with suppress(OSError):  # a file system without locks: the race for a dead run's cell is then possible
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def this_process() -> Owner:
    """The calling process."""
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:16]
    return Owner(host, _text("/proc/sys/kernel/random/boot_id"), _pid_namespace(), os.getpid(), start_time(os.getpid()))


def start_time(pid: int) -> int | None:
    """Field 22 of ``/proc/PID/stat`` (proc(5)): when the process started, in clock ticks after boot."""
    stat = _text(f"/proc/{pid}/stat")
    # the second field, the command, is in brackets and may hold spaces and brackets
    return int(stat.rpartition(")")[2].split()[19]) if stat else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no procfs
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # no procfs, or the process has ended
        return ""
