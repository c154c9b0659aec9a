"""Timed phases alone on the machine: a readers-writer turnstile that the kernel opens when a process dies.

Ordinary phases of all cells of a user run beside each other; a timed phase waits until they have ended or reached
their next turn, runs alone, and lets them go on. Two lock files in the system's folder for temporary files: whoever
wants in passes the *gate* one at a time; the *room* is held shared by ordinary phases and exclusively by a timed one.
A timed phase waits for the room with the gate in its hand, so later ordinary phases cannot overtake it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import announce

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def busy(folder: Path | None = None) -> Iterator[None]:
    """Around an ordinary phase: runs beside other ordinary phases, never beside a timed one.

    Args:
        folder: where the lock files are; by default the system's folder for temporary files.

    Raises:
        RuntimeError: this process is inside :func:`busy` or :func:`alone` already; it would wait for itself.
    """
    with _turn(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def alone(folder: Path | None = None) -> Iterator[None]:
    """Around a timed phase: nothing else of this user's cells runs beside it. The arguments are :func:`busy`'s."""
    with _turn(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def _turn(folder: Path | None, mode: int) -> Iterator[None]:
    if _held:
        raise RuntimeError("busy() and alone() do not nest: leave one before entering the other")
    room = _open(folder, "room")
    try:
        _pass_gate(folder, room, mode)
        yield
    finally:
        _close(room)


def _pass_gate(folder: Path | None, room: int, mode: int) -> None:
    gate = _open(folder, "gate")
    try:
        if not (_try(gate, fcntl.LOCK_EX) and _try(room, mode)):
            with announce.waiting():
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(room, mode)
    finally:
        _close(gate)


def _try(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(folder: Path | None, part: str) -> int:
    where = Path(tempfile.gettempdir()) if folder is None else folder
    path = where / f"snnbench-{os.getuid()}-{part}.lock"
    # O_NOFOLLOW: the folder is writable for everybody, and a link there could point at any of our files
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _held.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    """In a forked child (a data loader): its copies would keep the locks after the holder's death."""
    for descriptor in tuple(_held):
        _close(descriptor)


os.register_at_fork(after_in_child=_forget)
