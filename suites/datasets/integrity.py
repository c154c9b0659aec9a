"""Are these the published files: checksums, what an archive holds against what was unpacked, and what to do about it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.contracts import Unavailable
from suites.datasets.root import data_root, read_file, write_atomically
from suites.torchvision_shim import ensure_torchvision

FOLDER = "verified"
NAMED = 3  # files named in a message; the others are counted


class Damaged(Unavailable):
    """Files are here, but are not what they should be. Nothing is deleted or repaired."""


class Missing(Unavailable):
    """Files are not here."""


@dataclass(frozen=True)
class Verified:
    """What is known about a data set's files.

    Args:
        checksums: by file name; ``md5:...`` or ``sha256:...`` of what was found.
        variant: why these are not the published files, or None.
        size: bytes.
    """

    checksums: Mapping[str, str]
    variant: str | None
    size: int

    def sha256(self) -> str:
        """One hash of all checksums."""
        return hashlib.sha256(json.dumps(dict(self.checksums), sort_keys=True).encode()).hexdigest()


def check_md5(files: Mapping[Path, str], allow_variant: bool, fresh: bool = False) -> Verified:
    """Compare files with the checksums that their loader publishes.

    Args:
        files: expected MD5 by file.
        allow_variant: accept others.
        fresh: read all files again, whatever was found earlier.

    Raises:
        Missing: a file is not here.
        Damaged: a checksum differs, and variants are not allowed.
    """
    found = {path: md5_of(path, fresh) for path in files}
    wrong = [path for path, md5 in files.items() if found[path] != md5]
    reason = None
    if wrong:
        if not allow_variant:
            path = wrong[0]
            others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise Damaged(
                f"{path} is not the published file: its md5 is {found[path]}, expected {files[path]}{others}",
                "move it away and get it again, or accept it as a variant (allow_variant = true); nothing was deleted",
            )
        reason = f"checksums differ from the published ones: {listed(path.name for path in wrong)}"
    sums = {path.name: f"md5:{md5}" for path, md5 in found.items()}
    return Verified(sums, reason, sum(path.stat().st_size for path in files))


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


def stamp(paths: Iterable[Path]) -> str:
    """A hash that changes when a file or folder is replaced or written to; their content is not read.

    Raises:
        FileNotFoundError: one of them does not exist.
    """
    return hashlib.sha256(json.dumps([_state(path) for path in paths]).encode()).hexdigest()


def md5_of(path: Path, fresh: bool = False) -> str:
    """MD5 of a file, remembered as long as the file is not written to.

    Raises:
        Missing: there is no such file.
        Unavailable: it cannot be read.
    """
    ensure_torchvision()
    from torchvision.datasets.utils import calculate_md5

    try:
        state = _state(path)
        note = data_root() / FOLDER / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
        known = None if fresh else _remembered(note, state)
        return known or _remember(note, state, calculate_md5(path))
    except FileNotFoundError as error:
        raise Missing(f"{path} is missing", "put it there") from error
    except OSError as error:
        raise Unavailable(f"cannot read {path} ({error.strerror})", "check its permissions and the disk") from error


def _state(path: Path) -> list[str | int]:
    facts = path.stat()
    return [str(path), facts.st_size if path.is_file() else 0, facts.st_mtime_ns, facts.st_ctime_ns]


def _remembered(note: Path, state: list[str | int]) -> str | None:
    try:
        known = json.loads(read_file(note))
        return str(known["md5"]) if known["state"] == state else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remember(note: Path, state: list[str | int], md5: str) -> str:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, lambda file: file.write(json.dumps({"state": state, "md5": md5}).encode()))
    except (OSError, Unavailable):  # a data folder that is read-only: it is computed again next time
        pass
    return md5


def members(archive: Path) -> dict[str, int]:
    """Files of a zip or tar archive and their sizes in bytes.

    Raises:
        Damaged: the archive cannot be read.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as found:
                return {item.filename: item.file_size for item in found.infolist() if not item.is_dir()}
        with tarfile.open(archive) as tar:
            return {item.name: item.size for item in tar if item.isfile()}
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
        raise Damaged(
            f"{archive} cannot be read ({error})", "move it away and get it again; nothing was deleted"
        ) from error


def files_below(folder: Path, suffix: str) -> dict[str, int]:
    """Files whose names end with ``suffix`` and their sizes, by path below ``folder``, sorted.

    Raises:
        Damaged: a link leads nowhere, or a file cannot be looked at.
    """
    found = {}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffix) and not name.startswith("."):
                path = Path(root, name)
                found[path.relative_to(folder).as_posix()] = _size(path)
    return dict(sorted(found.items()))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        what = f"the link {path} leads nowhere" if path.is_symlink() else f"cannot look at {path} ({error.strerror})"
        raise Damaged(what, "mount or restore what it leads to; nothing was deleted") from error


def compare(expected: Mapping[str, int], found: Mapping[str, int]) -> str | None:
    """What is wrong with unpacked files, or None.

    Args:
        expected: sizes by path, as the archive has them.
        found: sizes by path, as they are.
    """
    lacking = [name for name in expected if name not in found]
    if lacking:
        return f"{len(lacking)} of {len(expected)} files are missing ({listed(lacking)})"
    cut = [name for name, size in expected.items() if found[name] != size]
    if cut:
        return f"{len(cut)} of {len(expected)} files have another size than in the archive ({listed(cut)})"
    extra = [name for name in found if name not in expected]
    return f"{len(extra)} files are not in the archive ({listed(extra)})" if extra else None
