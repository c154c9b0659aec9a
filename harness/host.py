"""The process's own memory: resident size, and its peak between two points without polling."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class HostPeak:
    """Rise of the process's resident peak over a region, above its resident size before.

    Writing 5 to ``/proc/self/clear_refs`` resets ``VmHWM`` (proc(5)); reading it at the end is exact and needs no
    polling. Resident size counts touched pages only. What the C library holds of memory freed earlier is given back
    first (malloc_trim(3), where there is one): a step would take those pages without a rise.

    >>> with HostPeak() as peak:
    ...     block = bytearray(64 << 20)
    >>> peak.bytes is None or peak.bytes >= 60 << 20
    True
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self.reason: str | None = None

    def __enter__(self) -> HostPeak:
        """Reset the peak."""
        _give_back()
        try:
            _CLEAR.write_text("5")
            self._before = _field("VmRSS")
        except OSError as error:
            self.reason = f"VmHWM cannot be reset here: {error}"
        return self

    def __exit__(self, *_: object) -> None:
        """Read the peak."""
        if self.reason is None:
            self.bytes = max(0, _field("VmHWM") - self._before)


def _give_back() -> None:
    """Return freed pages of the heap to the system; a C library without malloc_trim (musl, macOS) keeps its own."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _field(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {name} in {_STATUS}")
    return int(match[1]) * 1024
