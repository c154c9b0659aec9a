"""RevSResNet: a spiking residual network of reversible couplings (Zhang and Zhang, AAAI 2024).

A block splits its input by channel over the whole sequence and adds two residual functions in turn::

    Y1 = X1 + F(X2);   Y2 = X2 + G(Y1);   F, G = neuron - conv3x3 - norm - neuron - conv3x3 - norm

so that its input follows from its output: ``X2 = Y2 - G(Y1)``, ``X1 = Y1 - F(X2)``. Trained by plain BPTT the same
network is its own non-reversible counterpart. The stream between blocks is real-valued; inside autocast it stays in
float32, as in the published training.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import StagedOptions, image_shape, read_out
from suites.models.neurons import make_neuron
from suites.models.norm import after_neuron, make_norm

Stem = Literal["image", "events"]

# Published code, {cifar10,cifar10-dvs}/revs_resnet.py: blocks and channels of one half for each stage. The depth counts
# convolutions and the read-out: four a block, one a transition between stages, the stem's and the read-out's.
PUBLISHED: dict[int, tuple[tuple[int, ...], tuple[int, ...], Stem]] = {
    21: ((1, 1, 1, 1), (64, 128, 256, 448), "image"),
    24: ((1, 2, 2), (16, 32, 48), "events"),
    37: ((1, 2, 3, 2), (64, 128, 256, 448), "image"),
}


def _published(index: int) -> Any:
    return lambda values: PUBLISHED.get(values.get("depth", 21), PUBLISHED[21])[index]


class RevResNetOptions(StagedOptions):
    """Options of :class:`RevResNet`.

    The published CIFAR networks use ``neuron = "if"``, the one for events ``tau = 1.5``.

    Attributes:
        depth: published network whose ``blocks``, ``widths`` and ``stem`` are taken where they are left out.
        blocks: reversible blocks of each stage.
        widths: channels of one half of each stage; the stream has twice as many.
        stem: ``image``: one convolution at full resolution; ``events``: one with stride 2, then 3x3 average pooling
            with stride 2.
    """

    depth: Literal[21, 24, 37] = 21
    blocks: tuple[PositiveInt, ...] = Field(default_factory=_published(0), min_length=1)
    widths: tuple[PositiveInt, ...] = Field(default_factory=_published(1), min_length=1)
    stem: Stem = Field(default_factory=_published(2))

    @model_validator(mode="after")
    def _matching(self) -> RevResNetOptions:
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks has {len(self.blocks)} stages, widths {len(self.widths)}: they must be as many")
        return self


class Coupling(nn.Module):
    """A reversible block: two residual functions added in turn, ``[T, N, 2C, H, W] -> [T, N, 2C, H, W]``.

    Args:
        f: ``F``, one half to one half.
        g: ``G``, likewise.
    """

    DIM = -3
    """The channels, with or without ``T``."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        """``Y`` of ``X``."""
        x1, x2 = wide(x).chunk(2, self.DIM)
        y1 = x1 + self.f(x2)
        return torch.cat([y1, x2 + self.g(y1)], self.DIM)

    def reversible_coupling(self) -> tuple[nn.Module, nn.Module, int]:
        """``F``, ``G`` and the dimension that is split in two, for methods that invert (``reversible-block``)."""
        return self.f, self.g, self.DIM


class RevResNet(ModelSource):
    """Stem, each reversible block and each change of resolution are stages; neuron, pooling and linear are the head."""

    name = "rev-resnet"
    summary = "RevSResNet: spiking residual network of reversible blocks; default RevSResNet21"
    source = "Zhang, Zhang: Memory-efficient reversible spiking neural networks, AAAI 2024"
    options: ClassVar[type[RevResNetOptions]] = RevResNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; weights as published (He initialisation, fan-out)."""
        opt: RevResNetOptions = self.opt
        halvings = len(opt.widths) - 1 + 2 * (opt.stem == "events")
        channels, _, _ = image_shape(sample, self.name, halvings)
        stages: list[nn.Module] = [self._stem(channels, 2 * opt.widths[0])]
        for number, (count, half) in enumerate(zip(opt.blocks, opt.widths, strict=True)):
            if number:
                stages.append(self._transition(2 * opt.widths[number - 1], 2 * half))
            stages += [Coupling(self._residual(half), self._residual(half)) for _ in range(count)]
        out = 2 * opt.widths[-1]
        head = nn.Sequential(*self._spikes(), layer.AdaptiveAvgPool2d(1, step_mode="m"))
        head.extend(read_out(out, classes, opt.dropout))
        model = StagedModel(stages, head, opt.norm)
        for module in model.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return model

    def _stem(self, channels: int, out: int) -> nn.Sequential:
        """Real-valued: the first neurons are inside the blocks."""
        if self.opt.stem == "image":
            return nn.Sequential(*self._conv(channels, out, 3, 1))
        return nn.Sequential(*self._conv(channels, out, 3, 2), layer.AvgPool2d(3, stride=2, padding=1, step_mode="m"))

    def _transition(self, channels: int, out: int) -> nn.Sequential:
        """Half the resolution, the next stage's channels; not reversible."""
        pool = layer.AvgPool2d(3, stride=2, padding=1, step_mode="m")
        return nn.Sequential(*self._spikes(), pool, *self._conv(channels, out, 1, 1))

    def _residual(self, half: int) -> nn.Sequential:
        """``F`` or ``G``."""
        return nn.Sequential(*(part for _ in range(2) for part in (*self._spikes(), *self._conv(half, half, 3, 1))))

    def _spikes(self) -> list[nn.Module]:
        return [make_neuron(self.opt), *after_neuron(self.opt.norm)]

    def _conv(self, channels: int, out: int, size: int, stride: int) -> list[nn.Module]:
        """Convolution and normalisation."""
        norm = self.opt.norm
        kind = layer.WSConv2d if norm == "weight_standardised" else layer.Conv2d
        shape: dict[str, Any] = {"kernel_size": size, "stride": stride, "padding": size // 2}
        bias = norm in ("none", "weight_standardised")
        return [kind(channels, out, bias=bias, step_mode="m", **shape), make_norm(out, norm)]


def wide(x: Tensor) -> Tensor:
    """``x``, in float32 inside autocast: sums of residuals would lose their low bits in half precision."""
    return x.float() if torch.is_autocast_enabled(x.device.type) else x
