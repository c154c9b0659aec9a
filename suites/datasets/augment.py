"""Augmentations of the recipes; all draw from torch's global generator only.

======================  ================================================================================================
``crop-flip``           padded by 4 pixels, a random part of the image's size, mirrored half of the time (He et al.,
                        "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2).
``crop-flip-cutout``    and a square of 16 pixels blanked (DeVries and Taylor, "Improved Regularization of Convolutional
                        Neural Networks with Cutout", arXiv:1708.04552: 16 for CIFAR-10).
``autoaugment-cutout16``  as ``crop-flip-cutout``, with the policy learned for CIFAR-10 before Cutout (Cubuk et al.,
                        "AutoAugment", CVPR 2019).
``resized-crop-flip``   between 8 and 100 % of a photograph, scaled, mirrored half of the time (torchvision's defaults).
``flip``                all frames of a recording mirrored half of the time.
``flip-roll``           and moved along each axis by -5 to 5 pixels, round the edges (Deng et al., "Temporal Efficient
                        Training of Spiking Neural Network via Gradient Re-weighting", ICLR 2022, their DVS-CIFAR10).
======================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites.torchvision_shim import ensure_torchvision

CROP_PADDING = 4
CUTOUT = 16
ROLL = 5

Transform = Callable[[Tensor], Tensor]


class Cutout:
    """Blank a square whose centre is anywhere in the image; parts outside are cut off.

    After normalisation zero is the channel's mean, which the paper blanks with.

    Args:
        size: pixels a side.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        """A copy of ``[C, H, W]`` with zeros in the square."""
        height, width = image.shape[-2:]
        y, x = (int(torch.randint(n, ())) for n in (height, width))
        half = self.size // 2
        image = image.clone()
        image[..., max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


class FlipRoll:
    """Mirror a sequence of frames half of the time and move it, the same for all frames.

    Args:
        roll: largest distance along each axis in pixels.
    """

    def __init__(self, roll: int) -> None:
        self.roll = roll

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames ``[T, C, H, W]``."""
        if torch.rand(()) < 0.5:
            frames = frames.flip(-1)
        if self.roll:
            shifts = torch.randint(-self.roll, self.roll + 1, (2,)).tolist()
            frames = frames.roll(shifts, (-2, -1))
        return frames


def on_pixels(recipe: str, size: int) -> Transform | None:
    """The part of a recipe that works on ``[C, H, W]`` uint8, before normalisation."""
    if recipe == "none":
        return None
    ensure_torchvision()
    from torchvision.transforms import v2

    if recipe == "resized-crop-flip":
        return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    steps: list[Transform] = [v2.RandomCrop(size, padding=CROP_PADDING), v2.RandomHorizontalFlip()]
    if recipe.startswith("autoaugment"):
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    return v2.Compose(steps)


def on_values(recipe: str) -> Transform | None:
    """The part of a recipe that works on normalised values."""
    return Cutout(CUTOUT) if "cutout" in recipe else None


def on_frames(recipe: str) -> Transform | None:
    """A recipe for frames of events ``[T, C, H, W]``."""
    return None if recipe == "none" else FlipRoll(ROLL if recipe == "flip-roll" else 0)
