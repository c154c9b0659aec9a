"""Spiking Heidelberg Digits through tonic: spoken digits as spikes of 700 channels of a cochlea model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt, field_validator

from harness.contracts import DataInfo
from suites.datasets.events import EventSource, Pool, tonic_set
from suites.datasets.frames import Framing
from suites.datasets.integrity import Damaged
from suites.datasets.options import EventOptions, FileOptions
from suites.datasets.source import Download, unpack

CHANNELS = 700
URL = "https://zenkelab.org/datasets/"


class SHDOptions(FileOptions):
    """Options of :class:`SHD`.

    Attributes:
        channels: neighbouring channels are counted together so that this many remain; it divides 700.
        window_ms: milliseconds from the start of a recording that the T steps cover; the longest lasts 1,369 ms.
    """

    channels: PositiveInt = CHANNELS
    window_ms: PositiveInt = 1400

    @field_validator("channels")
    @classmethod
    def _divides(cls, value: int) -> int:
        if CHANNELS % value:
            raise ValueError(f"must divide {CHANNELS}")
        return value


class SHD(EventSource):
    """8,156 recordings for training, 2,264 for test, 20 classes: the digits in German and English."""

    name = "shd"
    summary = "Spiking Heidelberg Digits: spoken digits as spikes of 700 channels, 20 classes"
    source = "SHD (Cramer et al., IEEE Transactions on Neural Networks and Learning Systems 2020), tonic's files"
    base = "SHD"
    loader = "SHD"
    suffix = ".h5"
    sensor = (CHANNELS, 1, 1)
    classes = 20
    options: ClassVar[type[EventOptions]] = SHDOptions  # type: ignore[assignment]
    # tonic.datasets.SHD
    pools: ClassVar[dict[str, Pool]] = {
        "train": Pool(
            "",
            8156,
            Download(
                (f"{URL}shd_train.h5.zip",), "shd_train.h5.zip", "f3252aeb598ac776c1b526422d90eecb", base, "tonic"
            ),
            {"train": True},
        ),
        "test": Pool(
            "",
            2264,
            Download((f"{URL}shd_test.h5.zip",), "shd_test.h5.zip", "1503a5064faa34311c398fb0a1ed0a6f", base, "tonic"),
            {"train": False},
        ),
    }
    downloads = tuple(pool.download for pool in pools.values())

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        return DataInfo((self.opt.channels,), self.classes, self.source, self.opt.subset())

    def framing(self, steps: int) -> Framing:
        """See :meth:`EventSource.framing`."""
        return Framing(steps, self.sensor, (self.opt.channels, 1), "window", self.opt.window_ms * 1000)

    def recordings(self, pool: str) -> Any:
        """See :meth:`EventSource.recordings`; recordings are named by their place in the file."""
        found = tonic_set(self.loader, self.home, **self.pools[pool].arguments)
        count = len(found)
        found.data = [self.path / f"{index:06d}" for index in range(count)]
        return found

    def file(self, pool: str) -> Path:
        """A pool's recordings."""
        return self.path / self.pools[pool].download.name.removesuffix(".zip")

    def watched(self) -> list[Path]:
        """See :meth:`EventSource.watched`."""
        found = []
        for pool in self.pools:
            if not self.file(pool).is_file():
                raise self.missing(self.file(pool))
            archive = self.archive(self.pools[pool].download)
            found += [self.file(pool), *([archive] if archive.is_file() else [])]
        return found

    def unpack(self) -> None:
        """See :meth:`EventSource.unpack`."""
        for download in self.waiting():
            self.checked([download])
            target = self.path / download.name.removesuffix(".zip")
            unpack(self.archive(download), target, target.name)

    def waiting(self) -> list[Download]:
        """See :meth:`FileSource.waiting`."""
        found = {self.file(pool): self.pools[pool].download for pool in self.pools}
        return [d for file, d in found.items() if not file.exists() and self.archive(d).is_file()]

    def fetch(self) -> None:
        """See :meth:`FileSource.fetch`."""
        if any(not self.file(pool).is_file() for pool in self.pools):
            super(EventSource, self).fetch()
        self.verify(fresh=True)

    def names(self, pool: str) -> dict[str, int]:
        """See :meth:`EventSource.names`: the one file that holds all recordings."""
        path = self.file(pool)
        return {path.name: path.stat().st_size}

    def where(self, pool: str, name: str) -> str:
        """See :meth:`EventSource.where`."""
        return f"recording {int(name)} of {self.file(pool)}"

    def _labels(self, pool: str) -> dict[str, int]:
        import h5py  # type: ignore[import-untyped, unused-ignore]

        try:
            with h5py.File(self.file(pool), "r") as file:
                labels = file["labels"][()].tolist()
        except (OSError, KeyError) as error:
            raise Damaged(f"{self.name}: {self.file(pool)} cannot be read ({error})", self.again()) from error
        if not labels:
            raise Damaged(f"{self.name}: {self.file(pool)} has no recording", self.again())
        return {f"{index:06d}": int(label) for index, label in enumerate(labels)}
