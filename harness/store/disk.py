"""Files that are complete or absent: temporary name in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

SUFFIX = ".tmp"
OLD_S = 24 * 3600.0
"""Age in seconds at which a left-over temporary file is swept; no writer takes that long."""


def write_atomic(path: Path, fill: Callable[[Path], object]) -> Path:
    """Write a file that other processes see whole or not at all, even if this one is killed.

    Args:
        path: the final name; missing parent folders are made.
        fill: writes the content to the temporary path that it is given.

    Raises:
        OSError: the folder cannot be written, or the disk is full. No temporary file is left.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        fill(temporary)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


def sweep(root: Path, older_s: float = OLD_S) -> int:
    """Delete temporary files that killed writers left under ``root`` more than ``older_s`` seconds ago.

    Returns:
        How many were deleted; those that may not be deleted (a read-only store) are left.
    """
    limit, swept = time.time() - older_s, 0
    for path in root.rglob(f".*{SUFFIX}"):
        try:
            if path.stat().st_mtime < limit:
                path.unlink()
                swept += 1
        except (FileNotFoundError, PermissionError):
            continue  # another process was faster, or the store is read-only: either way nothing is broken
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
    return swept


def move_aside(path: Path, target: Path) -> Path:
    """Rename ``path`` to ``target``, or to ``target.1``, ``target.2``, ... where that exists.

    Raises:
        OSError: the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    free, number = target, 0
    while free.exists():
        number += 1
        free = target.with_name(f"{target.name}.{number}")
    return path.rename(free)


def _make_folder(folder: Path) -> None:
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync(made.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
