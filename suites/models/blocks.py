"""Parts that the hand-staged networks share; all in SpikingJelly's multi-step mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness.contracts import Options
from suites.models.neurons import NeuronOptions, make_neuron
from suites.models.norm import NormMode, NormOptions, after_neuron, make_conv, make_norm

Pooling = Literal["max", "avg"]


class ReadOutOptions(Options):
    """Options of the linear read-out.

    Attributes:
        dropout: probability of dropping a feature before the read-out; one mask for all time steps.
    """

    dropout: float = Field(0.0, ge=0.0, lt=1.0)


class StagedOptions(NeuronOptions, NormOptions, ReadOutOptions):
    """Options that every hand-staged network has."""


class Join(nn.Module):
    """Sum of two branches of the same input, ``branch(x) + shortcut(x)``.

    Args:
        branch: computed first.
        shortcut: left out, it is the input itself.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """In either step mode."""
        return self.branch(x) + self.shortcut(x)

    def summed_branches(self) -> tuple[nn.Module, nn.Module]:
        """What is added, for methods that ask which values come out (``checkpoint-compress``)."""
        return self.branch, self.shortcut


def conv_stage(
    inputs: int, outputs: int, norm: NormMode, neurons: NeuronOptions, *, bias: bool, tail: Iterable[nn.Module] = ()
) -> nn.Sequential:
    """3x3 convolution - normalisation - neuron, then ``tail``; ``[T, N, inputs, H, W] -> [T, N, outputs, H, W]``."""
    conv = make_conv(inputs, outputs, norm, bias=bias)
    return nn.Sequential(conv, make_norm(outputs, norm), make_neuron(neurons), *after_neuron(norm), *tail)


def make_pool(kind: Pooling) -> nn.Module:
    """2x2 pooling with stride 2."""
    return (layer.MaxPool2d if kind == "max" else layer.AvgPool2d)(2, stride=2, step_mode="m")


def read_out(features: int, classes: int, dropout: float) -> nn.Sequential:
    """``[T, N, ...]`` to logits ``[T, N, classes]``: flatten, dropout where asked for, linear."""
    drop = [layer.Dropout(dropout, step_mode="m")] if dropout else []
    return nn.Sequential(layer.Flatten(step_mode="m"), *drop, layer.Linear(features, classes, step_mode="m"))


def image_shape(sample: Sequence[int], model: str, pools: int) -> tuple[int, int, int]:
    """``sample`` as ``(C, H, W)``, checked to survive ``pools`` halvings.

    Raises:
        ValueError: not an image, or too small.
    """
    if len(sample) != 3:
        raise ValueError(f"{model} takes images [C, H, W], but the data has samples of shape {tuple(sample)}")
    channels, height, width = sample
    if min(height, width) < 2**pools:
        need = 2**pools
        raise ValueError(f"{model} halves its input {pools} times: {height}x{width} is below {need}x{need}")
    return channels, height, width
