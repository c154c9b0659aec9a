"""What a cell has found so far, beside the store, so that a kill or a time-out loses only the phase it strikes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from harness.executors.job import Job
from harness.store.disk import write_atomic

FOLDER = ".partial"
"""In the store's root; empty unless cells are running or died."""


def save(job: Job, found: dict[str, Any]) -> None:
    """Remember a record's fields; a store that cannot be written is the final record's business."""
    try:
        write_atomic(_path(job), lambda path: path.write_bytes(to_json(found)))
    except OSError:
        return


def peek(job: Job) -> dict[str, Any]:
    """The fields saved last, empty where there are none."""
    try:
        return dict(from_json(_path(job).read_bytes()))
    except (OSError, ValueError):
        return {}


def take(job: Job) -> dict[str, Any]:
    """The fields saved last, empty where there are none; they are forgotten."""
    found = peek(job)
    discard(job)
    return found


def discard(job: Job) -> None:
    """Forget them: the record is written."""
    _path(job).unlink(missing_ok=True)


def _path(job: Job) -> Path:
    return Path(job.store) / FOLDER / f"{job.run_id}.json"
