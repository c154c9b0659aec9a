"""Options that all data sets from files share."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from harness.contracts import Options

Encoding = Literal["direct", "rate"]


class FileOptions(Options):
    """Options of every data set that is read from files.

    Attributes:
        n_train: number of training samples, or all of them. The classes take turns, so a multiple of the number of
            classes has equally many of each.
        n_test: number of test samples, or all of them; likewise.
        subset_seed: which samples ``n_train`` and ``n_test`` take.
        allow_variant: accept files whose checksums are not the published ones, or that are a part of the set. The
            records then say why it is a variant, and it is not shown as the published benchmark.
    """

    n_train: PositiveInt | None = None
    n_test: PositiveInt | None = None
    subset_seed: NonNegativeInt = 0
    allow_variant: bool = False

    def subset(self) -> str | None:
        """Why this is not the whole data set, or None."""
        limits = {name: value for name in ("n_train", "n_test") if (value := getattr(self, name)) is not None}
        told = [f"{value} samples of {name[2:]}" for name, value in limits.items()]
        return f"{', '.join(told)} (seed {self.subset_seed})" if told else None


class ImageOptions(FileOptions):
    """Options of static images.

    Attributes:
        encoding: ``direct``: the image at every step, the first layer turns it into spikes; ``rate``: a channel of a
            pixel spikes at each step with a probability equal to its value (SpikingJelly's ``PoissonEncoder``).
        encoding_seed: seed of the test set's spikes under ``rate``; training spikes are drawn anew each time.
        normalise: ``direct`` only: subtract the training set's mean of each channel and divide by its deviation.
    """

    encoding: Encoding = "direct"
    encoding_seed: NonNegativeInt = 0
    normalise: bool = True


class SmallImageOptions(ImageOptions):
    """Options of images of 28 or 32 pixels.

    Attributes:
        augment: of the training images, see :data:`suites.datasets.augment.IMAGE_RECIPES`.
    """

    augment: Literal["none", "crop-flip", "crop-flip-cutout", "autoaugment-cutout16"] = "none"


class SequenceOptions(FileOptions):
    """Options of images that are read as a sequence.

    Attributes:
        normalise: subtract the training set's mean of each channel and divide by its deviation.
        augment: of the training images, before they are cut up.
    """

    normalise: bool = True
    augment: Literal["none", "crop-flip", "crop-flip-cutout", "autoaugment-cutout16"] = "none"


class PermutedOptions(FileOptions):
    """Options of permuted sequential MNIST.

    Attributes:
        permutation_seed: the order of the 784 pixels, the same for all images; None: row by row, as they are.
        normalise: as for images.
    """

    permutation_seed: NonNegativeInt | None = 0
    normalise: bool = True


class PhotoOptions(ImageOptions):
    """Options of photographs in folders.

    Attributes:
        augment: of the training images: ``none`` as for test images, ``resized-crop-flip``: a random part of the image,
            mirrored half of the time (He et al., CVPR 2016).
        size: pixels a side.
    """

    augment: Literal["none", "resized-crop-flip"] = "none"
    size: PositiveInt = 224


class EventOptions(FileOptions):
    """Options of event camera recordings.

    Attributes:
        split_by: how a recording is cut into T frames: ``number``: equally many events each, as in SpikingJelly's
            examples; ``time``: equally long.
        size: height and width in pixels that the sensor's are reduced to; events that fall together are counted
            together. None keeps the sensor's.
        augment: of the training frames: ``flip``: mirrored half of the time; ``flip-roll``: also moved by up to 5 pixels
            (Deng et al., TET, ICLR 2022; see :mod:`suites.datasets.augment`).
    """

    split_by: Literal["number", "time"] = "number"
    size: tuple[PositiveInt, PositiveInt] | None = None
    augment: Literal["none", "flip", "flip-roll"] = "none"
