"""A small convolutional network for data that fit on a laptop."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from spikingjelly.activation_based import layer

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import Pooling, StagedOptions, conv_stage, image_shape, make_pool, read_out


class ConvNetOptions(StagedOptions):
    """Options of :class:`ConvNet`.

    Attributes:
        channels: output channels of each stage.
        pooling: 2x2 pooling at the end of each stage; ``max`` keeps spikes binary.
        head: ``flatten`` all positions, or average them (``global``), before the linear read-out.
    """

    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64)
    pooling: Pooling = "max"
    head: Literal["flatten", "global"] = "flatten"


class ConvNet(ModelSource):
    """Stages of convolution - normalisation - neuron - pooling, and a linear read-out."""

    name = "convnet"
    summary = "small convolutional network: conv - norm - neuron - pool per stage, linear read-out"
    source = "-"
    options: ClassVar[type[ConvNetOptions]] = ConvNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; each stage halves the image."""
        opt: ConvNetOptions = self.opt
        channels, height, width = image_shape(sample, self.name, len(opt.channels))
        stages = []
        for outputs in opt.channels:
            # Batch normalisation subtracts the mean, so a bias before it would be a parameter without effect.
            bias = opt.norm in ("none", "weight_standardised")
            stages.append(conv_stage(channels, outputs, opt.norm, opt, bias=bias, tail=[make_pool(opt.pooling)]))
            channels, height, width = outputs, height // 2, width // 2
        positions = height * width if opt.head == "flatten" else 1
        head = read_out(channels * positions, classes, opt.dropout)
        if opt.head == "global":
            head.insert(0, layer.AdaptiveAvgPool2d(1, step_mode="m"))
        return StagedModel(stages, head, opt.norm)
