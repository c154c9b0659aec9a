"""Where data live, and how files get there whole.

Everything sits under ``$SNNBENCH_DATA``, by default ``~/.cache/snnbench``. Files appear by renaming a complete
temporary file, so a reader sees the old content or the new one and several processes may write at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from harness.contracts import Unavailable

VARIABLE = "SNNBENCH_DATA"
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


def data_root() -> Path:
    """The data folder; it need not exist.

    Raises:
        Unavailable: the variable is not set, and the user has no home folder.
    """
    try:
        return Path(os.environ.get(VARIABLE) or "~/.cache/snnbench").expanduser()
    except RuntimeError as error:
        raise Unavailable("there is no home folder to keep data in", f"set ${VARIABLE} to a folder") from error


def make_folder(*parts: str) -> Path:
    """A writable folder under the data root, made where missing.

    Raises:
        Unavailable: it cannot be made or written to.
    """
    folder = data_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        remedy = f"point ${VARIABLE} to a folder that you can write to"
        raise Unavailable(f"cannot write to the data folder {folder} ({error.strerror})", remedy) from error


def need_file(*parts: str, remedy: str) -> Path:
    """A file under the data root.

    Args:
        parts: its path below the root.
        remedy: where the file comes from; the place where it goes is added.

    Raises:
        Unavailable: it is absent; the message names the path.
    """
    path = data_root().joinpath(*parts)
    if path.is_file():
        return path
    raise Unavailable(f"{path} is missing", f"{remedy} and put it there, or point ${VARIABLE} to the folder with it")


def read_file(path: Path) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is no such file.
        Unavailable: it exists, but cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        raise Unavailable(f"cannot read {path} ({error.strerror})", "check its permissions and the disk") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Create or replace ``path`` with what ``write`` writes, or leave it as it was.

    Args:
        path: the file.
        write: writes the content.
        durable: wait until it is on the disk, so that a power cut leaves no empty file.

    Raises:
        Unavailable: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        remedy = f"free some space, or point ${VARIABLE} to another folder"
        raise Unavailable(f"cannot write {path} ({error.strerror})", remedy) from error
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path, reason: str) -> Path | None:
    """Rename a damaged file and log why; None where another process has already moved it."""
    target = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    log.warning("%s is damaged (%s): kept as %s", path, reason, target.name)
    return target


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays (names, shapes, types in little-endian order, content), whatever order they come in."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
