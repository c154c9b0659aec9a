"""Normalisation layers, one class per mode, and scaled weight standardisation.

The two batch normalisations share their state_dict keys.
"""

from __future__ import annotations

from typing import Literal

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness.contracts import Options

BatchNormMode = Literal["over_time", "per_step", "none"]
NormMode = Literal[BatchNormMode, "weight_standardised"]

# 1 / sqrt(p (1 - p)), p = P(x >= 1) = 0.159 for a normal x: spikes of a standard normal input get variance 1.
# OTTT (Xiao et al., NeurIPS 2022), models/spiking_vgg.py; SpikingJelly 2.0, model/spiking_vggws_ottt.py.
SPIKE_SCALE = 2.74


class NormOptions(Options):
    """Which statistics batch normalisation uses.

    Attributes:
        norm: ``over_time``: over T x N, SpikingJelly's multi-step default; ``per_step``: over N at every time step, as
            online methods need; ``weight_standardised``: none of activations; the weights of each output channel are
            standardised and have a learnt gain, and spikes are multiplied by 2.74; ``none``: no normalisation.
    """

    norm: NormMode = "over_time"


class PerStepBatchNorm2d(layer.BatchNorm2d):
    """Batch normalisation with the statistics of each time step.

    In multi-step mode it does what single-step mode does over a loop of T steps: the statistics of a step come from its
    N samples, and the running statistics are updated T times. SLTT and other online rules train under this mode
    (Meng et al., ICCV 2023).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, C, H, W]`` to the same shape; ``[N, C, H, W]`` in single-step mode."""
        if self.step_mode == "s":
            return self.super_forward(x)
        if x.dim() != 5:
            raise ValueError(f"expected x with shape [T, N, C, H, W], but got {tuple(x.shape)}")
        return torch.stack([self.super_forward(step) for step in x.unbind(0)])


class PerStepBatchNorm1d(layer.BatchNorm1d):
    """As :class:`PerStepBatchNorm2d`, for vectors and for channels in one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, C]`` or ``[T, N, C, L]`` to the same shape; without ``T`` in single-step mode.

        Raises:
            ValueError: an input without time in multi-step mode.
        """
        if self.step_mode == "s":
            return self.super_forward(x)
        if x.dim() not in (3, 4):
            raise ValueError(f"expected x with shape [T, N, C] or [T, N, C, L], but got {tuple(x.shape)}")
        return torch.stack([self.super_forward(step) for step in x.unbind(0)])


class TEBN2d(layer.TemporalEffectiveBatchNorm2d):
    """Temporal effective batch normalisation (Duan et al., NeurIPS 2022), SpikingJelly's, which knows its ``T``.

    Batch normalisation over T x N, then a learnt factor for each time step, 1 at first. It has no single-step mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, C, H, W]`` to the same shape.

        Raises:
            ValueError: another number of time steps than it was built for.
        """
        if x.shape[0] != len(self.scale):
            raise ValueError(
                f"built for T = {len(self.scale)} (the model's option tebn), but the input has {x.shape[0]}"
            )
        return super().forward(x)


class Scale(nn.Module):
    """Multiplies by a constant, in either step mode."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, to the same."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The factor."""
        return f"{self.factor}"


def make_conv(inputs: int, outputs: int, mode: NormMode, *, bias: bool, size: int = 3, stride: int = 1) -> nn.Module:
    """Convolution in multi-step mode that keeps the size at stride 1, with the weights' normalisation."""
    kind = layer.WSConv2d if mode == "weight_standardised" else layer.Conv2d
    return kind(inputs, outputs, kernel_size=size, stride=stride, padding=size // 2, bias=bias, step_mode="m")


def after_neuron(mode: NormMode) -> list[nn.Module]:
    """What a mode asks for between a neuron and what follows."""
    return [Scale(SPIKE_SCALE)] if mode == "weight_standardised" else []


def make_norm(channels: int, mode: NormMode, dims: Literal[1, 2] = 2) -> nn.Module:
    """A normalisation layer in multi-step mode.

    Args:
        channels: number of channels ``C`` of its input ``[T, N, C, H, W]``.
        mode: as in :class:`NormOptions`.
        dims: dimensions after the channels; 1 also takes none.
    """
    if mode in ("none", "weight_standardised"):
        return nn.Identity()
    kinds = (PerStepBatchNorm1d, PerStepBatchNorm2d) if mode == "per_step" else (layer.BatchNorm1d, layer.BatchNorm2d)
    return kinds[dims - 1](channels, step_mode="m")
