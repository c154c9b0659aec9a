"""N-MNIST, DVS128 Gesture, CIFAR10-DVS and N-Caltech101 through tonic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt

from harness.contracts import DataInfo
from suites.datasets.cache import Cached
from suites.datasets.events import EventSource, Pool, tonic_set
from suites.datasets.integrity import Damaged, members
from suites.datasets.options import EventOptions
from suites.datasets.source import Download, unpack
from suites.datasets.splits import stratified

TEST_SHARE = 0.1  # a tenth of each class, as the papers on CIFAR10-DVS and N-Caltech101 have it


def _download(url: str, name: str, md5: str, folder: str) -> Download:
    return Download((url,), name, md5, folder, "tonic")


class NMNIST(EventSource):
    """60,000 recordings for training, 10,000 for test, 34x34 pixels, about 300 ms."""

    name = "nmnist"
    summary = "N-MNIST: MNIST's digits seen by a moving event camera, 34x34, 10 classes"
    source = "N-MNIST (Orchard et al., Frontiers in Neuroscience 2015), tonic's files"
    base = "NMNIST"
    loader = "NMNIST"
    suffix = ".bin"
    sensor = (34, 34, 2)
    classes = 10
    # tonic.datasets.NMNIST
    pools: ClassVar[dict[str, Pool]] = {
        "train": Pool(
            "Train",
            60_000,
            _download(
                "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
                "39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
                "train.zip",
                "20959b8e626244a1b502305a9e6e2031",
                base,
            ),
            {"train": True},
        ),
        "test": Pool(
            "Test",
            10_000,
            _download(
                "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
                "05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
                "test.zip",
                "69ca8762b2fe404d9b9bad1103e97832",
                base,
            ),
            {"train": False},
        ),
    }
    downloads = tuple(pool.download for pool in pools.values())

    def recordings(self, pool: str) -> Any:
        """See :meth:`EventSource.recordings`."""
        return tonic_set(self.loader, self.home, **self.pools[pool].arguments)


class DVSGesture(EventSource):
    """Recordings of 11 hand and arm gestures, 128x128 pixels, in tonic's preprocessed version."""

    name = "dvs128-gesture"
    summary = "DVS128 Gesture: hand and arm gestures seen by an event camera, 128x128, 11 classes"
    source = "DVS128 Gesture (Amir et al., CVPR 2017), tonic's files, already cut into single gestures"
    base = "DVSGesture"
    loader = "DVSGesture"
    suffix = ".npy"
    sensor = (128, 128, 2)
    classes = 11
    # tonic.datasets.DVSGesture
    pools: ClassVar[dict[str, Pool]] = {
        "train": Pool(
            "ibmGestureTrain",
            None,
            _download(
                "https://figshare.com/ndownloader/files/38022171",
                "ibmGestureTrain.tar.gz",
                "3a8f0d4120a166bac7591f77409cb105",
                base,
            ),
            {"train": True},
        ),
        "test": Pool(
            "ibmGestureTest",
            None,
            _download(
                "https://figshare.com/ndownloader/files/38020584",
                "ibmGestureTest.tar.gz",
                "56070e45dadaa85fff82e0fbfbc06de5",
                base,
            ),
            {"train": False},
        ),
    }
    downloads = tuple(pool.download for pool in pools.values())

    def recordings(self, pool: str) -> Any:
        """See :meth:`EventSource.recordings`."""
        import numpy.lib.recfunctions  # noqa: F401  tonic uses it and does not import it

        return tonic_set(self.loader, self.home, **self.pools[pool].arguments)


class DividedOptions(EventOptions):
    """Options of sets without a published split.

    Attributes:
        split_seed: another one draws another tenth of each class for test.
    """

    split_seed: NonNegativeInt = 0


class DividedSource(EventSource):
    """A set without a published split: a tenth of each class is test data, drawn by hash."""

    options: ClassVar[type[EventOptions]] = DividedOptions

    def divide(self, content: Cached) -> dict[str, tuple[str, np.ndarray]]:
        """See :meth:`EventSource.divide`."""
        labels = content.arrays["all_labels"]
        return {part: ("all", index) for part, index in stratified(labels, TEST_SHARE, self.opt.split_seed).items()}

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`; the source says which split it is."""
        info = super().info()
        return DataInfo(info.sample, info.classes, f"{info.source}; {self.split_words()}", info.variant)

    def split_words(self) -> str:
        """Which split the options ask for."""
        return f"no published split: a tenth of each class is test, drawn by hash (seed {self.opt.split_seed})"

    def recordings(self, pool: str) -> Any:
        """See :meth:`EventSource.recordings`."""
        return tonic_set(self.loader, self.home)


class CIFAR10DVSOptions(DividedOptions):
    """Options of :class:`CIFAR10DVS`.

    Attributes:
        split: ``random``: a tenth of each class, drawn by hash; ``tebn``: recordings 0 to 99 of each class (Duan et al.,
            NeurIPS 2022), on which accuracies are typically much higher (SpikingJelly, ``CIFAR10DVSTEBNSplit``).
    """

    split: Literal["random", "tebn"] = "random"


class CIFAR10DVS(DividedSource):
    """10,000 recordings of CIFAR-10's images moved on a screen, 128x128 pixels."""

    name = "cifar10-dvs"
    summary = "CIFAR10-DVS: CIFAR-10 images moved in front of an event camera, 128x128, 10 classes"
    source = "CIFAR10-DVS (Li et al., Frontiers in Neuroscience 2017), tonic's files"
    base = "CIFAR10DVS"
    loader = "CIFAR10DVS"
    suffix = ".aedat4"
    sensor = (128, 128, 2)
    classes = 10
    options = CIFAR10DVSOptions
    # tonic.datasets.CIFAR10DVS
    pools: ClassVar[dict[str, Pool]] = {
        "all": Pool(
            "",
            10_000,
            _download(
                "https://figshare.com/ndownloader/files/38023437",
                "CIFAR10DVS.zip",
                "ce3a4a0682dc0943703bd8f749a7701c",
                base,
            ),
            {},
        )
    }
    downloads = tuple(pool.download for pool in pools.values())
    kinds: ClassVar[tuple[str, ...]] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip

    def divide(self, content: Cached) -> dict[str, tuple[str, np.ndarray]]:
        """See :meth:`EventSource.divide`."""
        if self.opt.split == "random":
            return super().divide(content)
        number = np.array([int(re.findall(r"\d+", Path(str(name)).stem)[-1]) for name in content.arrays["all_names"]])
        parts = {"train": number >= 100, "test": number < 100}
        return {part: ("all", np.flatnonzero(mask)) for part, mask in parts.items()}

    def split_words(self) -> str:
        """See :meth:`DividedSource.split_words`."""
        return (
            "TEBN's split: recordings 0 to 99 of each class are test"
            if self.opt.split == "tebn"
            else super().split_words()
        )

    def unpack(self) -> None:
        """See :meth:`EventSource.unpack`: the archive holds one of each class."""
        for download in self.waiting():
            self.checked([download])
            inner = self.path / "classes"
            if not inner.exists():
                unpack(self.archive(download), inner)
            for kind in self.kinds:
                archive = next(inner.rglob(f"{kind}.zip"), None)
                if archive is None:
                    raise Damaged(f"{self.name}: {self.archive(download)} has no {kind}.zip", self.again())
                unpack(archive, self.path / kind, kind)

    def waiting(self) -> list[Download]:
        """See :meth:`FileSource.waiting`."""
        unpacked = any((self.path / kind).exists() for kind in self.kinds)
        return [d for d in self.downloads if not unpacked and self.archive(d).is_file()]

    def packed(self, pool: str) -> dict[str, int] | None:
        """See :meth:`EventSource.packed`: the archives of the classes, where they were kept."""
        found: dict[str, int] = {}
        for kind in self.kinds:
            archive = next(self.path.rglob(f"{kind}.zip"), None)
            if archive is None:
                return None
            listed = {n: size for n, size in members(archive).items() if n.endswith(self.suffix)}
            found |= {f"{kind}/{Path(name).name}": size for name, size in listed.items()}
        return found


class NCaltech101(DividedSource):
    """8,709 recordings of Caltech101's images, up to 240x180 pixels, about 300 ms; moved to the upper left corner."""

    name = "n-caltech101"
    summary = "N-Caltech101: Caltech101 images seen by a moving event camera, 180x240, 101 classes"
    source = "N-Caltech101 (Orchard et al., Frontiers in Neuroscience 2015), tonic's files"
    base = "NCALTECH101"
    loader = "NCALTECH101"
    suffix = ".bin"
    sensor = (240, 180, 2)
    classes = 101
    # tonic.datasets.NCALTECH101
    pools: ClassVar[dict[str, Pool]] = {
        "all": Pool(
            "Caltech101",
            8709,
            _download(
                "https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
                "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
                "N-Caltech101-archive.zip",
                "66201824eabb0239c7ab992480b50ba3",
                base,
            ),
            {},
        )
    }
    downloads = tuple(pool.download for pool in pools.values())

    def _labels(self, pool: str) -> dict[str, int]:
        folder = self.path / self.pools[pool].folder
        names = sorted({name.split("/")[0] for name in self.names(pool)})
        self._numbers = {name: i for i, name in enumerate(names)}
        if len(names) > self.classes:
            raise Damaged(
                f"{self.name}: {folder} has {len(names)} class folders, expected {self.classes}", self.again()
            )
        return super()._labels(pool)

    def label(self, target: Any) -> int:
        """See :meth:`EventSource.label`: classes are numbered in the order of their names."""
        return self._numbers[str(target)]
