"""Images that fit into memory: read once through torchvision, kept as arrays beside, verified whenever they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from harness.contracts import DataInfo, DataSplits, Unavailable
from suites.datasets.cache import Arrays, Cached, DamagedError, read_cache, write_cache
from suites.datasets.images import Encoder, Images, Normal
from suites.datasets.integrity import Damaged, Verified, stamp
from suites.datasets.options import SmallImageOptions
from suites.datasets.root import data_root, make_folder, set_aside
from suites.datasets.source import FileSource, unpack
from suites.torchvision_shim import ensure_torchvision

VERSION = 1  # to be raised whenever the arrays would come out differently
PARTS = ("train", "test")


class StaticSource(FileSource):
    """A small image data set of torchvision."""

    loader: ClassVar[str]
    """Name of torchvision's class."""
    channels: ClassVar[int]
    pixels: ClassVar[int]
    classes: ClassVar[int]
    normal: ClassVar[Normal]
    source: ClassVar[str]
    options = SmallImageOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        opt: SmallImageOptions = self.opt
        sample = (self.channels, self.pixels, self.pixels)
        return DataInfo(sample, self.classes, self.source, opt.subset(), static=opt.encoding == "direct")

    def prepare(self, steps: int) -> None:
        """Verify the files, and decode them where no cell has."""
        self.verify(fresh=True)
        self.arrays()

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`."""
        content = self.arrays()
        parts, indices = {}, {}
        for part in PARTS:
            labels = content.arrays[f"{part}_labels"]
            index = indices[part] = self.limited(labels, part)
            images = torch.from_numpy(content.arrays[f"{part}_images"])
            chosen = images if len(index) == len(images) else images[torch.from_numpy(index)]
            parts[part] = self.dataset(chosen, labels[index].tolist(), part, steps)
        return self.splits(Verified(**content.meta["verified"]), parts, indices, self.how())

    def dataset(self, images: torch.Tensor, labels: Sequence[int], part: str, steps: int) -> Images:
        """One split."""
        return Images(images, labels, Encoder(self.opt, part, steps, self.normal, self.pixels))

    def how(self) -> str:
        """The steps between files and samples that are not random."""
        return f"uint8 images, version {VERSION}"

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read.

        Raises:
            Missing: one is not there.
        """

    @abstractmethod
    def decode(self) -> Arrays:
        """``train_images`` ``[n, C, H, W]`` uint8, ``train_labels`` ``[n]`` int64 and the same for ``test``."""

    def arrays(self) -> Cached:
        """The decoded images, from the cache or made now; ``meta["verified"]`` says what they were made from.

        Raises:
            Unavailable: files are missing or damaged.
        """
        self.unpack()
        path = data_root() / "cache" / self.loader / f"decoded-v{VERSION}-{stamp(self.files())[:16]}.npz"
        try:
            content = read_cache(path, {"version": VERSION})
        except FileNotFoundError:
            return self._make(path)
        except DamagedError as error:
            set_aside(path, str(error))
            return self._make(path)
        if content.meta["verified"]["variant"] and not self.opt.allow_variant:
            self.verify()  # says what differs
        return content

    def unpack(self) -> None:
        """Unpack a downloaded archive whose folder is not there yet.

        Raises:
            Damaged: the archive has another checksum than it should.
        """

    def _make(self, path: Path) -> Cached:
        found = self.verify()
        try:
            arrays = self.decode()
        except Unavailable:
            raise
        except Exception as error:  # a file that is not what it should be can make pickle, gzip or numpy raise anything
            reason = f"{type(error).__name__}: {error}"
            raise Damaged(f"{self.name}: {self.path} cannot be read ({reason})", self.again()) from error
        self._check(arrays)
        meta = {"version": VERSION, "verified": asdict(found)}
        try:
            make_folder("cache", self.loader)
            return write_cache(path, arrays, meta, compress=False, durable=False)
        except Unavailable:  # no room for a copy: decoded again by every cell
            return Cached(arrays, meta, "")

    def _check(self, arrays: Arrays) -> None:
        shape = (self.channels, self.pixels, self.pixels)
        for part in PARTS:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            if len(images) == 0:
                raise Damaged(f"{self.name}: the {part} split in {self.path} is empty", self.again())
            if images.shape[1:] != shape or images.dtype != np.uint8 or len(images) != len(labels):
                told = f"{len(labels)} labels and {images.dtype} images of shape {images.shape[1:]}, expected {shape}"
                raise Damaged(f"{self.name}: the {part} split in {self.path} has {told}", self.again())
            if labels.min() < 0 or labels.max() >= self.classes:
                told = f"labels from {labels.min()} to {labels.max()}, expected 0 to {self.classes - 1}"
                raise Damaged(f"{self.name}: the {part} split in {self.path} has {told}", self.again())


def torchvision_sets() -> Any:
    """Torchvision's module of data sets."""
    ensure_torchvision()
    import torchvision.datasets

    return torchvision.datasets


def unpack_archive(source: FileSource) -> None:
    """Unpack the only archive of a set into its base folder, where that is not there yet.

    Raises:
        Damaged: the archive has another checksum than it should.
    """
    for download in source.waiting():
        source.checked([download])
        unpack(source.archive(download), source.path, source.base)
