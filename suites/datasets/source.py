"""What all data sets from files have in common: where their files are, whether they are whole, how they get here."""

from __future__ import annotations

import secrets
import shutil
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.contracts import DataSource, DataSplits, DataStatus, Unavailable
from suites.datasets.integrity import Damaged, Missing, Verified, check_md5, files_below, members
from suites.datasets.options import FileOptions
from suites.datasets.root import VARIABLE, data_root, make_folder, set_aside, sha256_arrays
from suites.datasets.splits import take
from suites.torchvision_shim import ensure_torchvision


@dataclass(frozen=True)
class Download:
    """A file that a data set is made from.

    Args:
        urls: where it is, mirrors after the first; none where its owners want a registration.
        name: the file's name here.
        md5: its checksum.
        folder: where it goes, below the set's home.
        library: whose downloader gets it, ``torchvision`` or ``tonic``.
    """

    urls: tuple[str, ...]
    name: str
    md5: str
    folder: str = ""
    library: str = "torchvision"


class FileSource(DataSource):
    """A data set from files in the layout of torchvision or tonic.

    They are looked for in the data root and in each folder directly below it, so that both ``ROOT/MNIST/raw`` and
    ``ROOT/anything/MNIST/raw`` are found.
    """

    base: ClassVar[str]
    """File or folder that the set's files are in."""
    downloads: ClassVar[tuple[Download, ...]]
    options: ClassVar[type[FileOptions]] = FileOptions

    @abstractmethod
    def verify(self, fresh: bool = False) -> Verified:
        """Compare the files with what was published.

        Args:
            fresh: read them again, whatever was found earlier.

        Raises:
            Unavailable: files are missing or damaged.
        """

    @property
    def home(self) -> Path:
        """The folder that has :attr:`base` or, where none has, a file that it is made from."""
        root = data_root()
        folders = [root, *(sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else [])]
        marks = [self.base, *(str(Path(d.folder, d.name)) for d in self.downloads)]
        return next((f for mark in marks for f in folders if (f / mark).exists()), root)

    @property
    def path(self) -> Path:
        """:attr:`base`, where it is or should be."""
        return self.home / self.base

    def archive(self, download: Download) -> Path:
        """Where a file that the set is made from is or should be."""
        return self.home / download.folder / download.name

    def waiting(self) -> list[Download]:
        """Archives that are here and have not been unpacked."""
        return [d for d in self.downloads if not self.path.exists() and self.archive(d).is_file()]

    def checked(self, downloads: list[Download]) -> Verified:
        """Compare archives with their checksums.

        Raises:
            Damaged: one is not the published file; variants of archives are never unpacked.
        """
        return check_md5({self.archive(d): d.md5 for d in downloads}, allow_variant=False)

    def missing(self, path: Path) -> Missing:
        """The error for a file or folder that is not there."""
        return Missing(f"{self.name}: {path} is missing", self.remedy())

    def remedy(self) -> str:
        """What to do where files are missing, in short."""
        places: dict[str, list[str]] = {}
        for d in self.downloads:
            places.setdefault(str(self.archive(d).parent), []).append(d.name)
        told = "; ".join(f"{', '.join(files)} into {folder}" for folder, files in places.items())
        return (
            f"run `snnbench data fetch {self.name}`, or put {told} (`snnbench data status {self.name}` says from where)"
        )

    def again(self) -> str:
        """What to do where files are here, but not as they should be."""
        return f"move it away and run `snnbench data fetch {self.name}`; nothing was deleted"

    def places(self) -> str:
        """Which file from where goes into which folder."""
        places: dict[str, list[str]] = {}
        for d in self.downloads:
            renamed = "" if not d.urls or d.urls[0].endswith(d.name) else f" as {d.name}"
            places.setdefault(str(self.archive(d).parent), []).append(f"{d.urls[0] if d.urls else d.name}{renamed}")
        told = "; ".join(f"{', '.join(files)} into {folder}" for folder, files in places.items())
        return f"{told}, or point ${VARIABLE} to the folder that has them"

    def status(self) -> DataStatus:
        """See :meth:`DataSource.status`; archives are not unpacked."""
        try:
            if waiting := self.waiting():
                found = self.checked(waiting)
                told = f"{', '.join(d.name for d in waiting)} as published, unpacked when first needed"
                return DataStatus("present", told, str(self.home), found.size)
            found = self.verify()
        except Unavailable as error:
            state: Any = "damaged" if isinstance(error, Damaged) else "missing"
            return DataStatus(state, _told(self, error), str(self.path))
        state = "present" if found.variant is None else "variant"
        return DataStatus(state, found.variant or "as published", str(self.path), found.size)

    def fetch(self) -> None:
        """See :meth:`DataSource.fetch`; a file with another checksum is set aside, none is deleted."""
        for download in self.downloads:
            fetch_file(self, download)

    def limited(self, labels: np.ndarray, part: str) -> np.ndarray:
        """Indices into ``labels`` of what the options keep of ``train`` or ``test``.

        Raises:
            Damaged: the part has no samples.
        """
        if len(labels) == 0:
            raise Damaged(f"{self.name}: the {part} split in {self.path} is empty", self.again())
        return take(labels, getattr(self.opt, f"n_{part}"), self.opt.subset_seed)

    def splits(self, found: Verified, parts: dict[str, Any], indices: dict[str, np.ndarray], how: str) -> DataSplits:
        """Splits with their hash and what the record says of them.

        Args:
            found: the verified files.
            parts: the ``train`` and ``test`` data sets.
            indices: which samples of the files they hold.
            how: the deterministic steps from the files to the samples.
        """
        split = sha256_arrays(indices)
        content = {"files": np.array(found.sha256()), "split": np.array(split), "how": np.array(how)}
        details: dict[str, Any] = {
            "split_sha256": split, "checksums": dict(found.checksums), "bytes": found.size, "preprocessing": how,
            "sha256_of": "the files' checksums, the split's indices and the preprocessing",
            **{f"{name}_samples": len(index) for name, index in indices.items()},
        }  # fmt: skip
        if found.variant is not None:
            details["variant"] = found.variant
        return DataSplits(parts["train"], parts["test"], sha256_arrays(content), details)


def fetch_file(source: FileSource, download: Download) -> Path:
    """Download one file through the library's own downloader, into a temporary folder and from there into its place.

    Raises:
        Unavailable: there is no public address, no network, or what came has another checksum.
    """
    from suites.datasets.integrity import md5_of

    target = source.archive(download)
    if target.is_file() and md5_of(target, fresh=True) == download.md5:
        return target
    if not download.urls:
        raise Missing(f"{source.name}: {target} is missing, and its owners want a registration", source.remedy())
    made = [path for path in (target.parent, *target.parent.parents) if not path.exists()]
    folder = make_folder(target.parent.relative_to(data_root()).as_posix())
    partial = folder / f".{download.name}.{secrets.token_hex(4)}"
    try:
        _download(source, download, partial)
        if target.exists():
            set_aside(target, "its checksum is not the published one")
        (partial / download.name).replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:  # an empty folder of the set's name would hide the set itself in a folder further down
            with suppress(OSError):
                path.rmdir()
    return target


def _download(source: FileSource, download: Download, folder: Path) -> None:
    get = _downloader(download.library)
    errors = []
    for url in download.urls:
        try:
            get(url, str(folder), download.name, download.md5)
            return
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the checksum differs
            errors.append(f"{url}: {error}")
    raise Missing(
        f"{source.name}: cannot download {download.name} ({'; '.join(errors)})",
        f"on another machine get {source.places()}",
    )


def _told(source: FileSource, error: Unavailable) -> str:
    """What is wrong, and for missing files which goes where."""
    what = error.what.removeprefix(f"{source.name}: ")
    return f"{what}; {error.remedy if isinstance(error, Damaged) else source.places()}"


def _downloader(library: str) -> Callable[[str, str, str, str], None]:
    ensure_torchvision()
    if library == "tonic":
        from tonic.download_utils import download_url as from_tonic

        return from_tonic
    from torchvision.datasets.utils import download_url

    return download_url


def unpack(archive: Path, target: Path, inside: str = "") -> None:
    """Unpack a verified archive so that ``target`` appears whole or not at all.

    Args:
        archive: zip or tar file.
        target: the folder to make; it must not exist.
        inside: the folder of the archive that ``target`` is; empty: all of it.

    Raises:
        Damaged: the archive cannot be unpacked.
        Unavailable: the disk is full or the folder not writable.
    """
    ensure_torchvision()
    from torchvision.datasets.utils import extract_archive

    expected = members(archive)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        extract_archive(str(archive), str(temporary))
        if len(files_below(temporary, "")) < len([n for n in expected if not Path(n).name.startswith(".")]):
            raise Damaged(
                f"{archive} holds files that could not be unpacked",
                "move it away and get it again; nothing was deleted",
            )
        made = temporary / inside
        flat = not any(path.is_dir() for path in temporary.iterdir())  # files without the folder that they belong in
        (temporary if flat and not made.exists() else made).rename(target)
    except Unavailable:
        raise
    except Exception as error:  # a damaged archive can make zipfile, tarfile, gzip or zlib raise nearly anything
        if target.exists():
            return  # another process was quicker
        if isinstance(error, OSError) and error.errno is not None:
            remedy = f"free some space, or point ${VARIABLE} to a folder that you can write to"
            raise Unavailable(f"cannot unpack {archive} ({error.strerror})", remedy) from error
        mend = "move it away and get it again; nothing was deleted"
        raise Damaged(f"{archive} cannot be unpacked ({error})", mend) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
