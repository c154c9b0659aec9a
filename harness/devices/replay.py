"""NVML's replies, recorded on one machine and replayed on another.

A recording is a list of ``{"function", "args", "reply"}`` or ``{"function", "args", "error"}`` with NVML's return code,
as JSON. Handles are strings in it. The same question asked again gets the next reply; the last one stays.
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from harness.devices.border import Library, refusal
from harness.devices.device import DeviceError

Entry = dict[str, Any]


class Replay:
    """A :class:`Library` that answers from a recording.

    Args:
        entries: the recording.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self._replies: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._replies[_key(entry["function"], tuple(entry.get("args", [])))].append(entry)

    def call(self, function: str, *args: Any) -> Any:
        """The next recorded reply.

        Raises:
            DeviceError: the recorded refusal, or nobody had asked this when it was recorded.
        """
        waiting = self._replies.get(_key(function, args))
        if waiting is None:
            raise DeviceError(f"{function}{args}: not in the recording")
        entry = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if "error" in entry:
            raise refusal(int(entry["error"]), function)
        return _objects(entry["reply"])


class Recorder:
    """A :class:`Library` that writes down what another one answers, for :class:`Replay`.

    Args:
        library: the one that answers.
    """

    def __init__(self, library: Library) -> None:
        self.entries: list[Entry] = []
        self._library = library
        self._handles: list[Any] = []

    def call(self, function: str, *args: Any) -> Any:
        """The library's reply, noted."""
        entry: Entry = {"function": function, "args": [self._plain(arg) for arg in args]}
        self.entries.append(entry)
        try:
            reply = self._library.call(function, *args)
        except DeviceError as error:
            entry["error"] = 999 if error.code is None else error.code
            raise
        entry["reply"] = self._plain(reply)
        return reply

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        fields = [field[0] for field in getattr(value, "_fields_", [])] or list(getattr(value, "__dict__", {}))
        if fields:
            return {name: self._plain(getattr(value, name)) for name in fields}
        for number, handle in enumerate(self._handles):
            if handle is value:
                return f"handle {number}"
        self._handles.append(value)
        return f"handle {len(self._handles) - 1}"


def _key(function: str, args: tuple[Any, ...]) -> str:
    return json.dumps([function, *args])


def _objects(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _objects(item) for name, item in value.items()})
    return [_objects(item) for item in value] if isinstance(value, list) else value
