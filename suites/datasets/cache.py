"""One ``.npz`` of arrays on disk, made when absent, verified when read, rebuilt when damaged."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from suites.datasets.root import data_root, make_folder, read_file, set_aside, sha256_arrays, write_atomically

_META = "meta"

Arrays = dict[str, np.ndarray]


class DamagedError(Exception):
    """A cache file does not hold what was written into it."""


@dataclass(frozen=True)
class Cached:
    """Content of a cache file.

    Args:
        arrays: the arrays by name.
        meta: what the writer noted beside them.
        sha256: hash of the arrays, see :func:`suites.datasets.root.sha256_arrays`.
    """

    arrays: Arrays
    meta: dict[str, Any]
    sha256: str


def write_cache(
    path: Path, arrays: Arrays, meta: Mapping[str, Any], compress: bool = True, durable: bool = True
) -> Cached:
    """Write arrays with their hash, whole or not at all.

    Args:
        path: the file.
        arrays: by name.
        meta: to be kept beside them.
        compress: smaller; not worth its time for photographs.
        durable: wait for the disk; not needed for what is verified when read and can be made again.

    Raises:
        Unavailable: the file cannot be written.
    """
    result = Cached(arrays, dict(meta), sha256_arrays(arrays))
    note = np.array(json.dumps({"sha256": result.sha256, "meta": result.meta}, sort_keys=True))
    content: dict[str, Any] = {_META: note, **arrays}
    save = np.savez_compressed if compress else np.savez
    write_atomically(path, lambda file: save(file, **content), durable)
    return result


def read_cache(path: Path, expected: Mapping[str, Any]) -> Cached:
    """Read and verify a cache file.

    Args:
        path: the file.
        expected: entries that the file's ``meta`` must have.

    Raises:
        FileNotFoundError: there is no such file.
        Unavailable: it exists, but the system does not let us read it.
        DamagedError: it is truncated, altered, or was made by something else.
    """
    content = read_file(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        note = json.loads(arrays.pop(_META).item())
        sha256, meta = str(note["sha256"]), dict(note["meta"])
    except Exception as error:  # a flipped bit can make zipfile, zlib, numpy or json raise nearly anything
        raise DamagedError(f"unreadable: {type(error).__name__}: {error}") from error
    if sha256 != sha256_arrays(arrays):
        raise DamagedError("the content does not match its SHA-256")
    for name, value in expected.items():
        if meta.get(name) != value:
            raise DamagedError(f"{name} is {meta.get(name)!r}, expected {value!r}")
    return Cached(arrays, meta, sha256)


def cached(folder: str, name: str, expected: Mapping[str, Any], make: Callable[[], Arrays]) -> Cached:
    """Read a cache file, or make its content and write it.

    A damaged file is set aside first. Processes that get here at the same time each make the same content; the last
    rename wins, and each returns what it verified or made itself. The data folder may be read-only as long as the file
    is there.

    Args:
        folder: folder below the data root.
        name: the file's name.
        expected: ``meta`` of the file, checked on reading.
        make: computes the arrays.

    Raises:
        Unavailable: the file cannot be read, or is needed and cannot be written.
    """
    path = data_root() / folder / name
    try:
        return read_cache(path, expected)
    except FileNotFoundError:
        make_folder(folder)
    except DamagedError as error:
        make_folder(folder)
        set_aside(path, str(error))
    return write_cache(path, make(), expected)
