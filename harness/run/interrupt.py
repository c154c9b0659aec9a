"""Ctrl-C and SIGTERM as an event that a loop waits for beside its other events."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StoppedError(Exception):
    """The user asked to stop; what was finished is in the store."""


class Interrupt:
    """While entered, SIGINT and SIGTERM set a flag and make :attr:`reader` readable; a second one acts at once.

    An exception raised by the handler could strike between a process's start and the note that it runs; a flag can't.
    Only the main thread can enter it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = self._at_once = False
        self.reader, self._writer = os.pipe()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.reader)
        os.close(self._writer)

    def check(self) -> None:
        """Raise :class:`StoppedError` when a stop was asked for."""
        if self.requested:
            raise StoppedError

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While entered, a signal raises :class:`StoppedError` wherever it strikes: for long waits that hold nothing."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _handler(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(self._writer, b"\0")
        if self._at_once:
            raise StoppedError
