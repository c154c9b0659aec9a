"""A record as a file: to bytes and back, and what to say about bytes that are no record."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from harness.record import SCHEMA_VERSION, Record
from harness.validation import key_path


class DamagedRecordError(Exception):
    """The bytes are no record; the message says why."""


class NewerRecordError(Exception):
    """The record was written by a newer version, whose schema this one does not know; the file is fine."""


def encode(record: Record) -> bytes:
    """The record as JSON, UTF-8.

    NaN and infinity (a diverged loss) are written as ``NaN`` and ``Infinity``, as Python's ``json`` does: null would
    claim that nothing was measured. Arrays become lists, other values that JSON does not know text, and half
    surrogates ``?``.

    Raises:
        DamagedRecordError: the record's own fields would not pass on reading.
    """
    try:
        text = json.dumps(record.model_dump(), ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:  # a key that is no text, a loop
        raise DamagedRecordError(f"run {record.run_id}: {error}") from None
    data = f"{text}\n".encode("utf-8", "replace")
    decode(data)
    return data


def decode(data: bytes) -> Record:
    """The record that the bytes hold.

    Raises:
        NewerRecordError: its schema version is above :data:`harness.record.SCHEMA_VERSION`.
        DamagedRecordError: empty, no UTF-8, no JSON, a field missing or wrong, or the cell is not the spec's hash.
    """
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        version = _version(data)
        if version is not None and version > SCHEMA_VERSION:
            raise NewerRecordError(
                f"written by a newer snnbench (record schema {version}; this one reads up to {SCHEMA_VERSION}): "
                "upgrade snnbench to read it"
            ) from None
        raise DamagedRecordError(_reason(error, data)) from None


def _plain(value: Any) -> Any:
    """NumPy's and torch's scalars as numbers, their arrays and sets as lists, anything else as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _version(data: bytes) -> int | None:
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def _reason(error: ValidationError, data: bytes) -> str:
    if not data.strip():
        return "the file is empty"
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return _json_reason(data, first["msg"])
    path = key_path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _json_reason(data: bytes, message: str) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    return f"not JSON: {message}"
