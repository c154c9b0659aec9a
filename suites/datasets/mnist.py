"""MNIST (LeCun et al., 1998) and Fashion-MNIST (Xiao et al., 2017) through torchvision, and MNIST pixel by pixel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from harness.contracts import DataInfo, DataSplits
from suites.datasets.cache import Arrays
from suites.datasets.images import Encoder, Images, Pixels
from suites.datasets.integrity import Damaged, Verified, check_md5, md5_of
from suites.datasets.options import PermutedOptions
from suites.datasets.source import Download
from suites.datasets.splits import hashed_order
from suites.datasets.static import PARTS, StaticSource, torchvision_sets

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _downloads(mirrors: Sequence[str], folder: str, md5s: Sequence[str]) -> tuple[Download, ...]:
    return tuple(
        Download(tuple(f"{mirror}{name}.gz" for mirror in mirrors), f"{name}.gz", md5, folder)
        for name, md5 in zip(NAMES, md5s, strict=True)
    )


class MNIST(StaticSource):
    """60,000 images of 28x28 for training, 10,000 for test, 10 classes."""

    name = "mnist"
    summary = "MNIST: 70,000 handwritten digits, 28x28, 10 classes"
    source = "MNIST (LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 1998), torchvision's files"
    base = "MNIST/raw"
    # torchvision.datasets.MNIST.mirrors and resources
    downloads = _downloads(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        base,
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    )
    loader = "MNIST"
    channels, pixels, classes = 1, 28, 10
    normal = ((0.1307,), (0.3081,))  # of the training images, computed

    def files(self) -> list[Path]:
        """See :meth:`StaticSource.files`: the four archives, or else the unpacked files."""
        packed = [self.archive(d) for d in self.downloads]
        lacking = [path for path in packed if not path.is_file()]
        if not lacking:
            return packed
        plain = [path.with_suffix("") for path in packed]
        if all(path.is_file() for path in plain):
            return plain
        raise self.missing(lacking[0])

    def waiting(self) -> list[Download]:
        """None: archives are read as they are."""
        return []

    def verify(self, fresh: bool = False) -> Verified:
        """See :meth:`FileSource.verify`."""
        files = self.files()
        if files[0].suffix == ".gz":
            expected = {self.archive(d): d.md5 for d in self.downloads}
            return check_md5(expected, self.opt.allow_variant, fresh)
        if not self.opt.allow_variant:
            what = f"{self.name}: {self.path} has the unpacked files only, and checksums exist for the archives"
            raise Damaged(what, f"accept them as a variant (allow_variant = true), or {self.again()}")
        sums = {path.name: f"md5:{md5_of(path, fresh)}" for path in files}
        return Verified(sums, "unpacked files without the archives that have checksums", _size(files))

    def fetch(self) -> None:
        """See :meth:`FileSource.fetch`."""
        super().fetch()
        self.verify(fresh=True)

    def decode(self) -> Arrays:
        """See :meth:`StaticSource.decode`; archives are unpacked into a temporary folder."""
        arrays: Arrays = {}
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, self.loader, "raw")
            raw.mkdir(parents=True)
            self._unpack_into(raw)
            for part in PARTS:
                found = getattr(torchvision_sets(), self.loader)(folder, train=part == "train")
                arrays[f"{part}_images"] = found.data.unsqueeze(1).numpy()
                arrays[f"{part}_labels"] = found.targets.numpy().astype(np.int64)
        return arrays

    def _unpack_into(self, folder: Path) -> None:
        torchvision_sets()
        from torchvision.datasets.utils import extract_archive

        for path in self.files():
            if path.suffix == ".gz":
                extract_archive(str(path), str(folder))
            else:
                shutil.copy(path, folder)


class FashionMNIST(MNIST):
    """60,000 images of 28x28 for training, 10,000 for test, 10 classes of clothes."""

    name = "fashion-mnist"
    summary = "Fashion-MNIST: 70,000 pictures of clothes, 28x28, 10 classes"
    source = "Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747), torchvision's files"
    base = "FashionMNIST/raw"
    # torchvision.datasets.FashionMNIST.mirrors and resources
    downloads = _downloads(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        base,
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    )
    loader = "FashionMNIST"
    normal = ((0.2860,), (0.3530,))  # of the training images, as commonly used


class PermutedMNIST(MNIST):
    """MNIST as a sequence of 784 pixels in a fixed order: ``x[t]`` is one pixel, ``[1]``."""

    name = "psmnist"
    summary = "permuted sequential MNIST: one pixel a step in a fixed hashed order, T = 784"
    options: ClassVar[Any] = PermutedOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`; there is no standard permutation, ours follows from the seed."""
        seed = self.opt.permutation_seed
        order = "row by row" if seed is None else f"in an order of our own (seed {seed})"
        return DataInfo((self.channels,), self.classes, f"{self.source}, one pixel a step {order}", self.opt.subset())

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`.

        Raises:
            ValueError: ``steps`` is not 784.
        """
        if steps != self.pixels**2:
            raise ValueError(f"{self.name} has one pixel a step: T must be {self.pixels**2}, not {steps}")
        return super().load(steps)

    def dataset(self, images: torch.Tensor, labels: Sequence[int], part: str, steps: int) -> Images:
        """One split; items ``[784, 1]``."""
        order = torch.from_numpy(permutation(self.opt.permutation_seed, steps))
        return Pixels(images, labels, Encoder(self.opt, part, 1, self.normal, self.pixels), order)

    def how(self) -> str:
        """See :meth:`StaticSource.how`."""
        return f"{super().how()}, permutation seed {self.opt.permutation_seed}"


def permutation(seed: int | None, count: int) -> np.ndarray:
    """The order in which pixels are shown; None: as they are."""
    return np.arange(count) if seed is None else hashed_order(count, f"{seed}:psmnist")


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)
