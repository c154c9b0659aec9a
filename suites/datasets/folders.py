"""Photographs in class folders: ImageNet, Tiny-ImageNet and Imagenette, decoded when they are asked for.

What vouches for millions of files is the number of classes and files; their sizes enter the hash. The archives'
checksums are compared when they are unpacked.
"""

from __future__ import annotations

import csv
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from harness.contracts import DataInfo, DataSplits, Unavailable
from suites.datasets.cache import Arrays, Cached, DamagedError, read_cache, write_cache
from suites.datasets.images import Encoder, Files
from suites.datasets.integrity import Damaged, Verified, check_md5, files_below, listed, stamp
from suites.datasets.options import PhotoOptions
from suites.datasets.root import data_root, make_folder, set_aside, sha256_arrays
from suites.datasets.source import Download, FileSource
from suites.datasets.static import unpack_archive
from suites.torchvision_shim import ensure_torchvision

VERSION = 1  # to be raised whenever a listing would come out differently
PARTS = {"train": "train", "test": "val"}
NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's, as in torchvision.transforms' presets
CROP = 224 / 256  # part of the scaled image that is kept, as in torchvision's classification presets


class Frame:
    """From a decoded photograph to pixels.

    Args:
        size: pixels a side.
        whole: leave it as it is, for an augmentation that crops by itself.
    """

    def __init__(self, size: int, whole: bool) -> None:
        self.size, self.whole = size, whole

    def __call__(self, photograph: Any) -> Tensor:
        """``[3, H, W]`` uint8: scaled and the middle cut out, or as it is."""
        ensure_torchvision()
        from torchvision.transforms.v2 import functional

        image = functional.pil_to_tensor(photograph)
        if self.whole:
            return image
        if image.shape[-2:] != (self.size, self.size):
            image = functional.resize(image, [round(self.size / CROP)], antialias=True)
        return functional.center_crop(image, [self.size, self.size])


class FolderSource(FileSource):
    """A folder with ``train/CLASS/`` and ``val/CLASS/``."""

    classes: ClassVar[int]
    counts: ClassVar[dict[str, int]]
    """Published number of files of each part."""
    suffix: ClassVar[str]
    source: ClassVar[str]
    options = PhotoOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        opt: PhotoOptions = self.opt
        sample = (3, opt.size, opt.size)
        return DataInfo(sample, self.classes, self.source, opt.subset(), static=opt.encoding == "direct")

    def prepare(self, steps: int) -> None:
        """Verify the folders and list their files."""
        self.verify(fresh=True)

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`."""
        content = self.listing()
        found = self._verified(content)
        parts, indices = {}, {}
        for part, folder in PARTS.items():
            names, labels = content.arrays[f"{part}_names"], content.arrays[f"{part}_labels"]
            index = indices[part] = self.limited(labels, part)
            paths = [str(self.path / folder / name) for name in names[index]]
            encoder = Encoder(self.opt, part, steps, NORMAL, self.opt.size)
            parts[part] = Files(
                paths, labels[index].tolist(), encoder, Frame(self.opt.size, encoder.pixels is not None)
            )
        return self.splits(found, parts, indices, f"RGB, {self.opt.size} pixels a side, version {VERSION}")

    def verify(self, fresh: bool = False) -> Verified:
        """See :meth:`FileSource.verify`."""
        return self._verified(self.listing(fresh))

    def fetch(self) -> None:
        """See :meth:`FileSource.fetch`."""
        if not self.path.exists():
            super().fetch()
        self.verify(fresh=True)

    def listing(self, fresh: bool = False) -> Cached:
        """Names below each part's folder, labels and sizes in bytes; kept until a class folder changes.

        Raises:
            Unavailable: a folder is missing or empty.
        """
        self._unpack()
        folders = {part: self.path / folder for part, folder in PARTS.items()}
        for folder in folders.values():
            if not folder.is_dir():
                raise self.missing(folder)
        inner = sorted(p for folder in folders.values() for p in folder.iterdir())
        inner += [p / "images" for p in inner if (p / "images").is_dir()]  # Tiny-ImageNet's second level
        cache = data_root() / "cache" / self.name / f"files-v{VERSION}-{stamp([*folders.values(), *inner])[:16]}.npz"
        if not fresh:
            try:
                return read_cache(cache, {"version": VERSION})
            except FileNotFoundError:
                pass
            except DamagedError as error:
                set_aside(cache, str(error))
        arrays: Arrays = {}
        for part, folder in folders.items():
            arrays |= {f"{part}_{key}": value for key, value in self._list(folder, part).items()}
        try:
            make_folder("cache", self.name)
            return write_cache(cache, arrays, {"version": VERSION}, durable=False)
        except Unavailable:  # photographs on a read-only share: listed again by every cell
            return Cached(arrays, {"version": VERSION}, "")

    def _unpack(self) -> None:
        """Unpack a downloaded archive whose folder is not there yet."""
        unpack_archive(self)

    def _list(self, folder: Path, part: str) -> Arrays:
        sizes = files_below(folder, self.suffix)
        names = list(sizes)
        if not names:
            raise Damaged(f"{self.name}: the {part} split in {folder} is empty (no *{self.suffix})", self.again())
        empty = [name for name, size in sizes.items() if size == 0]
        if empty:
            raise Damaged(f"{self.name}: {folder / empty[0]} is empty (and {len(empty) - 1} more)", self.again())
        return {
            "names": np.array(names),
            "sizes": np.array(list(sizes.values()), dtype=np.int64),
            "labels": self.labels(folder, part, names),
        }

    @abstractmethod
    def labels(self, folder: Path, part: str, names: list[str]) -> np.ndarray:
        """The class of each file ``[n]``.

        Args:
            folder: the part's folder.
            part: ``train`` or ``test``.
            names: paths below it.

        Raises:
            Unavailable: class folders are missing.
        """

    def by_folder(self, folder: Path, names: list[str]) -> np.ndarray:
        """Classes numbered in the alphabetical order of their folders, as torchvision's ``ImageFolder`` does."""
        kinds = sorted({name.split("/")[0] for name in names})
        hollow = sorted({p.name for p in folder.iterdir() if p.is_dir()} - set(kinds))
        if hollow:
            raise Damaged(f"{self.name}: the class folders {listed(hollow)} in {folder} are empty", self.again())
        if len(kinds) != self.classes:
            what = f"{self.name}: {folder} has {len(kinds)} class folders, expected {self.classes}"
            raise Damaged(f"{what} (there are {listed(kinds)})", self.again())
        number = {kind: i for i, kind in enumerate(kinds)}
        return np.array([number[name.split("/")[0]] for name in names], dtype=np.int64)

    def _verified(self, content: Cached) -> Verified:
        counts = {part: len(content.arrays[f"{part}_labels"]) for part in PARTS}
        kinds = {part: {n.split("/")[0] for n in content.arrays[f"{part}_names"]} for part in PARTS}
        if len(kinds["test"]) == len(kinds["train"]) and kinds["train"] != kinds["test"]:
            differ = listed(sorted(kinds["train"] ^ kinds["test"]))
            raise Damaged(f"{self.name}: the class folders of train and val differ ({differ})", self.again())
        reason = None
        if counts != self.counts:
            reason = ", ".join(f"{counts[p]} of {self.counts[p]} files in {f}" for p, f in PARTS.items())
            if not self.opt.allow_variant:
                remedy = f"accept it as a variant (allow_variant = true), or {self.again()}"
                raise Damaged(f"{self.name}: {self.path} has {reason}", remedy)
        size = int(sum(content.arrays[f"{part}_sizes"].sum() for part in PARTS))
        sums = {"names and sizes": f"sha256:{sha256_arrays(content.arrays)}"}
        return Verified(sums, reason, size)


class ImageNet(FolderSource):
    """1,281,167 photographs for training, 50,000 for validation, 1000 classes."""

    name = "imagenet"
    summary = "ImageNet (ILSVRC 2012): 1.3 million photographs, 1000 classes"
    source = "ILSVRC 2012 (Russakovsky et al., IJCV 2015); test is its validation set"
    base = "imagenet"
    classes, suffix = 1000, ".jpeg"
    counts: ClassVar[dict[str, int]] = {"train": 1_281_167, "test": 50_000}
    # torchvision.datasets.imagenet.ARCHIVE_META; they want a registration at image-net.org
    downloads = (
        Download((), "ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf", base),
        Download((), "ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e", base),
        Download((), "ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622", base),
    )

    def places(self) -> str:
        """See :meth:`FileSource.places`."""
        return self.remedy()

    def remedy(self) -> str:
        """See :meth:`FileSource.remedy`."""
        names = ", ".join(d.name for d in self.downloads)
        return (
            f"get {names} from image-net.org (a registration is needed) into {self.path} and run `snnbench data fetch "
            f"{self.name}`, which unpacks them, or put the class folders into {self.path / 'train'} and "
            f"{self.path / 'val'}"
        )

    def fetch(self) -> None:
        """Verify and unpack the archives through torchvision, which takes hours; they cannot be downloaded freely."""
        if not all((self.path / folder).is_dir() for folder in PARTS.values()):
            for download in self.downloads:
                if not self.archive(download).is_file():
                    raise self.missing(self.archive(download))
            check_md5({self.archive(d): d.md5 for d in self.downloads}, allow_variant=False)
            ensure_torchvision()
            from torchvision.datasets import ImageNet as Unpacker

            for folder in PARTS.values():
                Unpacker(str(self.path), folder)
        self.verify(fresh=True)

    def labels(self, folder: Path, part: str, names: list[str]) -> np.ndarray:
        """See :meth:`FolderSource.labels`."""
        return self.by_folder(folder, names)

    def _unpack(self) -> None:
        """Only :meth:`fetch` does that: it takes hours."""


class TinyOptions(PhotoOptions):
    """Options of :class:`TinyImageNet`; ``size`` is 64."""

    size: int = 64


class TinyImageNet(FolderSource):
    """100,000 photographs of 64x64 for training, 10,000 for validation, 200 classes."""

    name = "tiny-imagenet"
    summary = "Tiny-ImageNet-200: 110,000 photographs, 64x64, 200 classes"
    source = "Tiny-ImageNet-200 (Stanford CS231n); test is its validation set"
    base = "tiny-imagenet-200"
    classes, suffix = 200, ".jpeg"
    counts: ClassVar[dict[str, int]] = {"train": 100_000, "test": 10_000}
    options = TinyOptions
    # The checksum that Avalanche's loader compares (avalanche/benchmarks/datasets/tiny_imagenet).
    downloads = (
        Download(
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            "tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
        ),
    )

    def labels(self, folder: Path, part: str, names: list[str]) -> np.ndarray:
        """See :meth:`FolderSource.labels`; ``val`` as published has one folder and a table of classes."""
        if part == "train" or not all(name.startswith("images/") for name in names):
            return self.by_folder(folder, names)
        table = folder / "val_annotations.txt"
        if not table.is_file():
            raise self.missing(table)
        with table.open(newline="") as file:
            kinds = {row[0]: row[1] for row in csv.reader(file, delimiter="\t") if len(row) > 1}
        number = {kind: i for i, kind in enumerate(sorted(p.name for p in (self.path / "train").iterdir()))}
        try:
            return np.array([number[kinds[Path(name).name]] for name in names], dtype=np.int64)
        except KeyError as error:
            raise Damaged(f"{self.name}: {table} or train lacks {error}", self.again()) from error


class ImagenetteOptions(PhotoOptions):
    """Options of :class:`Imagenette`; ``size`` is 128."""

    size: int = 128


class Imagenette(FolderSource):
    """9,469 photographs for training, 3,925 for validation, ten classes of ImageNet; shorter side 160 pixels."""

    name = "imagenette"
    summary = "Imagenette (160 px): 13,394 photographs of ten ImageNet classes"
    source = "Imagenette 2 (fast.ai), 160 px; test is its validation set"
    base = "imagenette2-160"
    classes, suffix = 10, ".jpeg"
    counts: ClassVar[dict[str, int]] = {"train": 9469, "test": 3925}  # github.com/fastai/imagenette
    options = ImagenetteOptions
    # torchvision.datasets.Imagenette._ARCHIVES["160px"]
    downloads = (
        Download(
            ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",),
            "imagenette2-160.tgz",
            "e793b78cc4c9e9a4ccc0c1155377a412",
        ),
    )

    def labels(self, folder: Path, part: str, names: list[str]) -> np.ndarray:
        """See :meth:`FolderSource.labels`."""
        return self.by_folder(folder, names)
