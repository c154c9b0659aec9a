"""Static images as items ``(x [T, C, H, W], y)``: augmentation, normalisation, encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from spikingjelly.activation_based.encoding import PoissonEncoder
from torch import Tensor
from torch.utils.data import Dataset

from suites.datasets.augment import Transform, on_pixels, on_values
from suites.datasets.integrity import Damaged
from suites.datasets.options import ImageOptions, PermutedOptions, SequenceOptions
from suites.torchvision_shim import ensure_torchvision

ImageLike = ImageOptions | SequenceOptions | PermutedOptions

Normal = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel, for values in [0, 1]."""


class Encoder:
    """From an image to a sequence: the same frame at every step, or spikes with its values as probabilities.

    Args:
        options: encoding, normalisation and augmentation.
        part: ``train``: augmented, spikes from torch's global generator; ``test``: the same every time.
        steps: ``T``.
        normal: the channels' mean and deviation.
        size: pixels a side.
    """

    def __init__(self, options: ImageLike, part: str, steps: int, normal: Normal, size: int) -> None:
        recipe = getattr(options, "augment", "none") if part == "train" else "none"
        self.pixels: Transform | None = on_pixels(recipe, size)
        self.values: Transform | None = on_values(recipe)
        self.rate, self.steps = getattr(options, "encoding", "direct") == "rate", steps
        self.seed = getattr(options, "encoding_seed", 0) if part == "test" else None
        normalise = options.normalise and not self.rate
        self.mean, self.deviation = (torch.tensor(n).view(-1, 1, 1) if normalise else None for n in normal)

    def __call__(self, image: Tensor, index: int) -> Tensor:
        """``[T, C, H, W]`` float32 of ``[C, H, W]`` uint8; ``index`` names the item, so that its spikes can repeat."""
        if self.pixels is not None:
            image = self.pixels(image)
        x = image.float() / 255
        if self.mean is not None and self.deviation is not None:
            x = (x - self.mean) / self.deviation
        if self.values is not None:
            x = self.values(x)
        x = x.expand(self.steps, *x.shape)
        return self._spikes(x, index) if self.rate else x

    def _spikes(self, x: Tensor, index: int) -> Tensor:
        encode = PoissonEncoder(step_mode="m")
        if self.seed is None:
            return encode(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + index)
            return encode(x)


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory.

    Args:
        images: ``[n, C, H, W]`` uint8, kept as they are.
        labels: ``[n]``.
        encoder: makes a sequence of an image.
    """

    def __init__(self, images: Tensor, labels: Sequence[int], encoder: Encoder) -> None:
        self.images, self.labels, self.encoder = images, labels, encoder

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.encoder(self.images[index], index), self.labels[index]


class Pixels(Images):
    """Images read as a sequence of columns or single pixels.

    Args:
        images: as in :class:`Images`.
        labels: as in :class:`Images`.
        encoder: with ``steps = 1``.
        order: ``None``: columns from left to right, ``x [W, C, H]``; otherwise pixels in this order, ``x [H * W, C]``.
    """

    def __init__(self, images: Tensor, labels: Sequence[int], encoder: Encoder, order: Tensor | None) -> None:
        super().__init__(images, labels, encoder)
        self.order = order

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, label = super().__getitem__(index)
        if self.order is None:
            return x[0].movedim(-1, 0).contiguous(), label
        return x[0].flatten(1)[:, self.order].T.contiguous(), label


class Files(Dataset[tuple[Tensor, int]]):
    """Photographs, decoded when they are asked for.

    Args:
        paths: one file each.
        labels: ``[n]``.
        encoder: makes a sequence of an image.
        frame: from a decoded photograph to ``[C, H, W]`` uint8.

    Raises:
        Damaged: a file that was asked for is not a whole photograph; the message names it.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], encoder: Encoder, frame: Any) -> None:
        self.paths, self.labels, self.encoder, self.frame = paths, labels, encoder, frame

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.encoder(self.frame(self._photograph(self.paths[index])), index), self.labels[index]

    @staticmethod
    def _photograph(path: str) -> Any:
        ensure_torchvision()
        from torchvision.datasets.folder import default_loader

        try:
            return default_loader(path)
        except Exception as error:  # PIL's decoders raise nearly anything, mostly without the file's name
            mend = "move it away and unpack its archive again; nothing was deleted"
            raise Damaged(f"{path} cannot be read ({type(error).__name__}: {error})", mend) from error
