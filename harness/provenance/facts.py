"""Facts that may be unavailable: null, with the reason under the fact's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class NotAvailableError(Exception):
    """A fact cannot be had here; the message says why."""


class Facts:
    """Collects facts in nested tables, and the reasons for those that are null.

    >>> facts = Facts()
    >>> facts.ask("cpu.governor", lambda: read(Path("/nowhere")))
    >>> facts.values["cpu"], sorted(facts.values["reasons"])
    ({'governor': None}, ['cpu.governor'])
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"reasons": {}}

    def put(self, key: str, value: Any) -> None:
        """Set a fact; dots in ``key`` lead into nested tables."""
        *path, last = key.split(".")
        table = self.values
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value

    def ask(self, key: str, question: Callable[[], Any]) -> None:
        """Set a fact to the answer, or to null and the reason.

        Args:
            key: the fact's name.
            question: returns the fact, or raises :class:`NotAvailableError` or :class:`OSError`.
        """
        try:
            self.put(key, question())
        except (NotAvailableError, OSError) as error:
            self.put(key, None)
            self.values["reasons"][key] = str(error)


def read(path: Path) -> str:
    """A small text file of the kernel's, stripped.

    Raises:
        NotAvailableError: it does not exist or cannot be read.
    """
    try:
        return path.read_text(errors="replace").strip()
    except OSError as error:
        raise NotAvailableError(f"{path}: {error.strerror}") from None
