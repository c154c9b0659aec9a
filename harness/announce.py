"""What a worker tells its parent while it runs: the phase it is in, and when it only waits for its turn.

Everything here does nothing in a process that no executor started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Literal, TypeAlias

Message: TypeAlias = tuple[Literal["phase"], str] | tuple[Literal["waiting"], bool]

_channel: Connection | None = None


def connect(to: Connection | None) -> None:
    """Send what this process announces through ``to``; None: nowhere."""
    global _channel
    _channel = to


def channel() -> Connection | None:
    """Where announcements go, to be handed to a process that this one starts; None: nowhere."""
    return _channel


def phase(name: str) -> None:
    """A phase starts: shown as progress, and named in the record if the process dies in it."""
    _send(("phase", name))


@contextmanager
def waiting() -> Iterator[None]:
    """Around waiting for another cell's timed phase: the cell's own time limit stands still meanwhile."""
    _send(("waiting", True))
    try:
        yield
    finally:
        _send(("waiting", False))


def _send(message: Message) -> None:
    if _channel is None:
        return
    try:
        _channel.send(message)
    except BrokenPipeError:  # the parent is gone, and its death ends this process
        return
