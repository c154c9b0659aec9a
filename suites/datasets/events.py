"""What the event camera data sets have in common: recordings from tonic's loaders, frames, splits."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.contracts import DataInfo, DataSplits, Unavailable
from suites.datasets.augment import on_frames
from suites.datasets.cache import Arrays, Cached, DamagedError, read_cache, write_cache
from suites.datasets.frames import EventFrames, FrameStore, Framing
from suites.datasets.integrity import (
    Damaged,
    Verified,
    compare,
    files_below,
    md5_of,
    members,
    stamp,
)
from suites.datasets.options import EventOptions
from suites.datasets.root import data_root, make_folder, set_aside, sha256_file
from suites.datasets.source import Download, FileSource, unpack
from suites.torchvision_shim import ensure_torchvision

VERSION = 1  # to be raised whenever the frames or the order of the recordings would come out differently


@dataclass(frozen=True)
class Pool:
    """Recordings that belong together: a published split, or all of a set that has none.

    Args:
        folder: their folder below the set's base.
        count: how many were published, or None where the archive alone tells.
        download: the archive they come in.
        arguments: of tonic's loader.
    """

    folder: str
    count: int | None
    download: Download
    arguments: dict[str, Any]


class EventSource(FileSource):
    """A data set of tonic, as frames ``[T, 2, H, W]`` of numbers of events."""

    loader: ClassVar[str]
    """Name of tonic's class; its folder is called the same."""
    pools: ClassVar[dict[str, Pool]]
    """``train`` and ``test``, or ``all`` for a set without a published split."""
    suffix: ClassVar[str]
    sensor: ClassVar[tuple[int, int, int]]
    """Width, height, polarities."""
    classes: ClassVar[int]
    source: ClassVar[str]
    options: ClassVar[type[EventOptions]] = EventOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        return DataInfo(self.framing(1).shape[1:], self.classes, self.source, self.opt.subset())

    def framing(self, steps: int) -> Framing:
        """How recordings become frames."""
        width, height, _ = self.sensor
        rows, columns = self.opt.size or (height, width)
        return Framing(steps, self.sensor, (columns, rows), self.opt.split_by)

    def verify(self, fresh: bool = False) -> Verified:
        """See :meth:`FileSource.verify`."""
        return Verified(**self.catalogue(fresh).meta["verified"])

    def prepare(self, steps: int) -> None:
        """Verify the recordings and make the frames that are not there yet."""
        content = self.catalogue(fresh=True)
        store = self.store(content, steps)
        for pool, index in self.chosen(content).values():
            store.fill(pool, index.tolist())

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`; frames are read, or made, when they are asked for."""
        content = self.catalogue()
        store, shape = self.store(content, steps), (steps, *self.info().sample)
        chosen = self.chosen(content)
        parts = {}
        for part, (pool, index) in chosen.items():
            labels = content.arrays[f"{pool}_labels"][index].tolist()
            augment = on_frames(getattr(self.opt, "augment", "none")) if part == "train" else None
            parts[part] = EventFrames(store, pool, index.tolist(), labels, shape, augment)
        found = Verified(**content.meta["verified"])
        how = json.dumps(self.how(steps), sort_keys=True)
        splits = self.splits(found, parts, {part: index for part, (_, index) in chosen.items()}, how)
        splits.details["cache"] = "/".join(store.folder)
        return splits

    def how(self, steps: int) -> dict[str, Any]:
        """The steps from recordings to frames."""
        return asdict(self.framing(steps)) | {"tonic": version("tonic"), "version": VERSION}

    def store(self, content: Cached, steps: int) -> FrameStore:
        """Where the frames are; its name has the hash of the recordings and of what is done to them."""
        key = {"recordings": Verified(**content.meta["verified"]).sha256(), **self.how(steps)}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return FrameStore(("cache", self.name, f"frames-T{steps}-{digest}"), Maker(self, content, self.framing(steps)))

    def chosen(self, content: Cached) -> dict[str, tuple[str, np.ndarray]]:
        """For ``train`` and ``test``: the pool and the indices into it.

        Raises:
            Damaged: a part is empty.
        """
        chosen = {}
        for part, (pool, index) in self.divide(content).items():
            labels = content.arrays[f"{pool}_labels"][index]
            chosen[part] = (pool, index[self.limited(labels, part)])
        return chosen

    def divide(self, content: Cached) -> dict[str, tuple[str, np.ndarray]]:
        """The published split: pool and indices of both parts."""
        return {part: (part, np.arange(len(content.arrays[f"{part}_labels"]))) for part in ("train", "test")}

    @abstractmethod
    def recordings(self, pool: str) -> Any:
        """Tonic's data set of a pool, without its own check of the files and without downloading."""

    def catalogue(self, fresh: bool = False) -> Cached:
        """Names and labels of all recordings, sorted by name, and in ``meta["verified"]`` what vouches for them.

        Args:
            fresh: verify the archives again, whatever was found earlier.

        Raises:
            Unavailable: files are missing or damaged.
        """
        self.unpack()
        path = data_root() / "cache" / self.name / f"catalogue-v{VERSION}-{stamp(self.watched())[:16]}.npz"
        if not fresh:
            try:
                content = read_cache(path, {"version": VERSION})
                if self.opt.allow_variant or content.meta["verified"]["variant"] is None:
                    return content
            except FileNotFoundError:
                pass
            except DamagedError as error:
                set_aside(path, str(error))
        arrays, found = self._list(), self._verify(fresh)
        meta = {"version": VERSION, "verified": asdict(found)}
        try:
            make_folder("cache", self.name)
            return write_cache(path, arrays, meta, durable=False)
        except Unavailable:
            return Cached(arrays, meta, "")

    def watched(self) -> list[Path]:
        """Files and folders that do not change as long as the recordings are the same.

        Raises:
            Missing: a folder is not there.
        """
        found = []
        for pool in self.pools.values():
            folder = self.path / pool.folder
            if not folder.is_dir() or not (pool.folder or any(folder.iterdir())):  # or a base that nothing is in
                raise self.missing(folder)
            inner = sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "cache")
            found += [folder, *inner, *([a] if (a := self.archive(pool.download)).is_file() else [])]
        return found

    def unpack(self) -> None:
        """Unpack downloaded archives whose folders are not there yet.

        Raises:
            Damaged: an archive has another checksum than it should.
        """
        for download in self.waiting():
            self.checked([download])
            (pool,) = (pool for pool in self.pools.values() if pool.download == download)
            unpack(self.archive(download), self.path / pool.folder, pool.folder)

    def waiting(self) -> list[Download]:
        """See :meth:`FileSource.waiting`."""
        pools = self.pools.values()
        return [p.download for p in pools if not (self.path / p.folder).exists() and self.archive(p.download).is_file()]

    def fetch(self) -> None:
        """See :meth:`FileSource.fetch`."""
        if any(not (self.path / pool.folder).is_dir() for pool in self.pools.values()):
            super().fetch()
        self.verify(fresh=True)

    def names(self, pool: str) -> dict[str, int]:
        """Sizes in bytes of a pool's recordings by their path below its folder, sorted."""
        return files_below(self.path / self.pools[pool].folder, self.suffix)

    def where(self, pool: str, name: str) -> str:
        """A recording's place in words, for messages."""
        return str(self.path / self.pools[pool].folder / name)

    def packed(self, pool: str) -> dict[str, int] | None:
        """The same as the archive has them; None where it does not list them.

        Raises:
            Damaged: the archive cannot be read.
        """
        folder = self.pools[pool].folder
        start = f"{folder}/" if folder else ""
        return {
            name.removeprefix(start): size
            for name, size in members(self.archive(self.pools[pool].download)).items()
            if name.startswith(start) and name.endswith(self.suffix) and not Path(name).name.startswith(".")
        }

    def _list(self) -> Arrays:
        arrays: Arrays = {}
        for pool in self.pools:
            found = self._labels(pool)
            arrays[f"{pool}_names"] = np.array(list(found))
            arrays[f"{pool}_labels"] = np.array(list(found.values()), dtype=np.int64)
        return arrays

    def _labels(self, pool: str) -> dict[str, int]:
        folder = self.path / self.pools[pool].folder
        try:
            found = self.recordings(pool)
            names = [Path(path).relative_to(folder).as_posix() for path in found.data]
            labels = {name: self.label(target) for name, target in zip(names, found.targets, strict=True)}
        except (ValueError, KeyError, IndexError) as error:
            raise Damaged(
                f"{self.name}: {folder} has a folder or file that is no class ({error})", self.again()
            ) from error
        if not labels:
            raise Damaged(f"{self.name}: {folder} has no recording (*{self.suffix})", self.again())
        lacking = self.classes - len(set(labels.values()))
        if lacking:
            raise Damaged(
                f"{self.name}: {folder} has no recording of {lacking} of {self.classes} classes", self.again()
            )
        return dict(sorted(labels.items()))

    def label(self, target: Any) -> int:
        """Tonic's target as a class number."""
        return int(target)

    def _verify(self, fresh: bool) -> Verified:
        sums: dict[str, str] = {}
        reasons, size = [], 0
        for pool in self.pools:
            found = self.names(pool)
            self._whole(pool, found)
            archive = self.archive(self.pools[pool].download)
            doubt, checksum = self._doubt(pool, found, fresh)
            if doubt is not None:
                if not self.opt.allow_variant:
                    remedy = f"accept it as a variant (allow_variant = true), or {self.again()}"
                    raise Damaged(f"{self.name}: {self.path / self.pools[pool].folder}: {doubt}", remedy)
                reasons.append(f"{self.pools[pool].folder or pool}: {doubt}")
                checksum = f"sha256:{self._content(pool, found)}"
            sums[archive.name if doubt is None else f"{pool} recordings"] = checksum
            size += sum(found.values())
        return Verified(sums, "; ".join(reasons) or None, size)

    def _whole(self, pool: str, found: dict[str, int]) -> None:
        """A file of no bytes is a copy that was cut off; taken for a recording without events it would train as zeros."""
        empty = [name for name, size in found.items() if size == 0]
        if empty:
            where = self.path / self.pools[pool].folder / empty[0]
            raise Damaged(f"{self.name}: {where} is empty (and {len(empty) - 1} more)", self.again())

    def _doubt(self, pool: str, found: dict[str, int], fresh: bool) -> tuple[str | None, str]:
        """Why a pool is not the published one, or None; and its archive's checksum."""
        published = self.pools[pool]
        archive = self.archive(published.download)
        if not archive.is_file():
            many = f"{len(self._labels(pool))}" + (f" of {published.count}" if published.count else "") + " recordings"
            return f"{many}, without {archive.name}, which has a checksum", ""
        md5 = md5_of(archive, fresh)
        if md5 != published.download.md5:
            return f"the md5 of {archive.name} is {md5}, expected {published.download.md5}", ""
        packed = self.packed(pool)
        if packed is not None and (problem := compare(packed, found)):
            return f"not what is in {archive.name}: {problem}", ""
        if published.count not in (None, len(self._labels(pool))):
            return f"{len(self._labels(pool))} of {published.count} recordings", ""
        return None, f"md5:{md5}"

    def _content(self, pool: str, names: dict[str, int]) -> str:
        digest, folder = hashlib.sha256(), self.path / self.pools[pool].folder
        for name in names:
            digest.update(f"{name}:{sha256_file(folder / name)};".encode())
        return digest.hexdigest()


class Maker:
    """Makes the frames of one recording, see :data:`suites.datasets.frames.Make`.

    Args:
        source: the data set.
        content: its catalogue.
        framing: how.
    """

    def __init__(self, source: EventSource, content: Cached, framing: Framing) -> None:
        self.source, self.content, self.framing = source, content, framing
        self._open: dict[str, tuple[Any, dict[str, int]]] = {}

    def __call__(self, pool: str, index: int) -> np.ndarray:
        """Frames ``[T, P, H, W]`` uint8.

        Raises:
            Damaged: the recording cannot be read.
        """
        name = str(self.content.arrays[f"{pool}_names"][index])
        recordings, places = self._recordings(pool)
        try:
            return self.framing(recordings[places[name]][0])
        except Unavailable:
            raise
        except ImportError as error:
            need = f"install it: pip install {error.name}"
            raise Unavailable(f"{self.source.name}: reading {name} needs the package {error.name}", need) from error
        except Exception as error:  # a damaged recording can make tonic's readers raise nearly anything
            where = self.source.where(pool, name)
            reason = f"{type(error).__name__}: {error}"
            raise Damaged(f"{self.source.name}: {where} cannot be read ({reason})", self.source.again()) from error

    def _recordings(self, pool: str) -> tuple[Any, dict[str, int]]:
        if pool not in self._open:
            recordings = self.source.recordings(pool)
            folder = self.source.path / self.source.pools[pool].folder
            places = {Path(path).relative_to(folder).as_posix(): i for i, path in enumerate(recordings.data)}
            self._open[pool] = (recordings, places)
        return self._open[pool]


def tonic_set(name: str, save_to: Path, **arguments: Any) -> Any:
    """Tonic's data set on files that were verified before: it neither checks nor downloads.

    Args:
        name: of tonic's class, which is the name of its folder, too.
        save_to: the folder that has that folder.
        arguments: of the class.
    """
    ensure_torchvision()
    import tonic.datasets

    kind = getattr(tonic.datasets, name)
    return type(name, (kind,), {"_check_exists": lambda self: True})(str(save_to), **arguments)
