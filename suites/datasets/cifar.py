"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) through torchvision, and CIFAR-10 column by column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from harness.contracts import DataInfo, DataSplits
from suites.datasets.cache import Arrays
from suites.datasets.images import Encoder, Images, Pixels
from suites.datasets.integrity import Verified, check_md5
from suites.datasets.options import SequenceOptions
from suites.datasets.source import Download
from suites.datasets.static import PARTS, StaticSource, torchvision_sets, unpack_archive

KRIZHEVSKY = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
FOLDER_10, FOLDER_100 = "cifar-10-batches-py", "cifar-100-python"


class CIFAR10(StaticSource):
    """50,000 images of 32x32 for training, 10,000 for test, 10 classes."""

    name = "cifar10"
    summary = "CIFAR-10: 60,000 colour images, 32x32, 10 classes"
    source = f"CIFAR-10 ({KRIZHEVSKY}), torchvision's files"
    base = FOLDER_10
    # torchvision.datasets.CIFAR10.url and tgz_md5
    downloads = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
    )
    loader = "CIFAR10"
    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
        "meta": ("batches.meta",),
    }
    channels, pixels, classes = 3, 32, 10
    normal = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of the training images, computed

    def files(self) -> list[Path]:
        """See :meth:`StaticSource.files`."""
        found = [self.path / name for names in self.parts.values() for name in names]
        for path in found:
            if not path.is_file():
                raise self.missing(path)
        return found

    def verify(self, fresh: bool = False) -> Verified:
        """See :meth:`FileSource.verify`."""
        self.unpack()
        self.files()
        kind = getattr(torchvision_sets(), self.loader)
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        return check_md5({self.path / name: md5 for name, md5 in listed}, self.opt.allow_variant, fresh)

    def unpack(self) -> None:
        """See :meth:`StaticSource.unpack`."""
        unpack_archive(self)

    def fetch(self) -> None:
        """See :meth:`FileSource.fetch`."""
        if not self.path.exists():
            super().fetch()
        self.verify(fresh=True)

    def decode(self) -> Arrays:
        """See :meth:`StaticSource.decode`."""
        kind = _accepting(getattr(torchvision_sets(), self.loader))
        arrays: Arrays = {}
        for part in PARTS:
            found = kind(str(self.path.parent), train=part == "train")
            arrays[f"{part}_images"] = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
            arrays[f"{part}_labels"] = np.asarray(found.targets, dtype=np.int64)
        return arrays


class CIFAR100(CIFAR10):
    """50,000 images of 32x32 for training, 10,000 for test, 100 classes."""

    name = "cifar100"
    summary = "CIFAR-100: 60,000 colour images, 32x32, 100 classes"
    source = f"CIFAR-100 ({KRIZHEVSKY}), torchvision's files"
    base = FOLDER_100
    # torchvision.datasets.CIFAR100.url and tgz_md5
    downloads = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    )
    loader = "CIFAR100"
    parts: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",), "meta": ("meta",)}
    classes = 100
    # The training images' as commonly used, e.g. by github.com/weiaicunzai/pytorch-cifar100 (conf/global_settings.py).
    normal = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class SequentialCIFAR10(CIFAR10):
    """CIFAR-10 as a sequence of 32 columns: ``x[t]`` is column ``t`` of the three channels, ``[3, 32]``."""

    name = "seq-cifar10"
    summary = "sequential CIFAR-10: the image's 32 columns one after the other, T = 32"
    options = SequenceOptions  # type: ignore[assignment]

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        source = f"{self.source}, column by column"
        return DataInfo((self.channels, self.pixels), self.classes, source, self.opt.subset())

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`.

        Raises:
            ValueError: ``steps`` is not 32.
        """
        if steps != self.pixels:
            raise ValueError(f"{self.name} has one column a step: T must be {self.pixels}, not {steps}")
        return super().load(steps)

    def dataset(self, images: torch.Tensor, labels: Sequence[int], part: str, steps: int) -> Images:
        """One split; items ``[32, 3, 32]``."""
        return Pixels(images, labels, Encoder(self.opt, part, 1, self.normal, self.pixels), None)


def _accepting(kind: Any) -> Any:
    """The loader without its checksums: :meth:`CIFAR10.verify` has compared them, and said what differs."""
    meta = {**kind.meta, "md5": None}
    return type(kind.__name__, (kind,), {"_check_integrity": lambda self: True, "meta": meta})
