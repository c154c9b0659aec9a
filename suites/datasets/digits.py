"""scikit-learn's handwritten digits as frames: real data that come with the installation."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor
from torch.utils.data import Dataset

from harness.contracts import DataInfo, DataSource, DataSplits
from suites.datasets.digit_source import CLASSES, SIZE, SOURCE, LimitOptions, load_images, split_details, split_indices
from suites.datasets.root import sha256_arrays


class DigitsOptions(LimitOptions):
    """Options of :class:`Digits`.

    Attributes:
        encoding: ``direct``: the frame at every step, the first layer turns it into spikes; ``rate``: a pixel spikes at
            each step with a probability equal to its brightness (SpikingJelly's ``PoissonEncoder``).
        encoding_seed: seed of the test set's spikes under ``rate``; training spikes are drawn anew each time.
    """

    encoding: Literal["direct", "rate"] = "direct"
    encoding_seed: NonNegativeInt = 0


class Frames(Dataset[tuple[Tensor, int]]):
    """Items ``(x [T, 1, 8, 8], y)``; the T steps share their memory.

    Args:
        images: ``[n, 1, 8, 8]`` in [0, 1].
        labels: ``[n]``.
        steps: ``T``.
    """

    def __init__(self, images: Tensor, labels: list[int], steps: int) -> None:
        self.images, self.labels, self.steps = images, labels, steps

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return image.expand(self.steps, *image.shape), self.labels[index]


class RateCoded(Frames):
    """Items whose pixels spike with a probability equal to their brightness.

    Args:
        images: as in :class:`Frames`.
        labels: as in :class:`Frames`.
        steps: ``T``.
        seed: the same spikes for an item every time; None draws from torch's global generator.
    """

    def __init__(self, images: Tensor, labels: list[int], steps: int, seed: int | None) -> None:
        super().__init__(images, labels, steps)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        shape = (len(images), steps, *images.shape[1:])
        self.thresholds = None if generator is None else torch.rand(shape, generator=generator)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        threshold = torch.rand(image.shape) if self.thresholds is None else self.thresholds[index]
        return (threshold < image).float(), label


class Digits(DataSource):
    """1,797 digits of 8x8 pixels, 1,438 for training and 359 for test."""

    name = "digits"
    summary = "scikit-learn's handwritten digits, 8x8, part of the installation"
    options: ClassVar[type[DigitsOptions]] = DigitsOptions

    def info(self) -> DataInfo:
        """See :meth:`DataSource.info`."""
        opt: DigitsOptions = self.opt
        return DataInfo((1, SIZE, SIZE), CLASSES, SOURCE, opt.variant(), static=opt.encoding == "direct")

    def prepare(self, steps: int) -> None:
        """Put a copy of the images into the data folder, so that cells need not import scikit-learn."""
        load_images()

    def load(self, steps: int) -> DataSplits:
        """See :meth:`DataSource.load`."""
        images, labels = load_images()
        split = self.opt.limit(split_indices(labels))
        sha256 = sha256_arrays({"images": images, "labels": labels})
        train, test = (self._part(images[split[part]], labels[split[part]], steps, part) for part in ("train", "test"))
        return DataSplits(train, test, sha256, split_details(split) | {"encoding": self.opt.encoding})

    def _part(self, images: np.ndarray, labels: np.ndarray, steps: int, part: str) -> Frames:
        pixels = torch.from_numpy(images).unsqueeze(1)
        if self.opt.encoding == "direct":
            return Frames(pixels, labels.tolist(), steps)
        return RateCoded(pixels, labels.tolist(), steps, self.opt.encoding_seed if part == "test" else None)
