"""SCNN: the one-dimensional network of the memory claims on sequential CIFAR-10."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PositiveInt
from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import ReadOutOptions, read_out
from suites.models.neurons import NeuronOptions, make_neuron
from suites.models.norm import BatchNormMode, NormOptions, make_norm


class SCNNOptions(NeuronOptions, NormOptions, ReadOutOptions):
    """Options of :class:`SCNN`; the defaults are the published network's.

    Attributes:
        channels: output channels of every convolution.
        hidden: neurons of the fully connected stage.
    """

    norm: BatchNormMode = "over_time"
    decay_input: bool = False
    channels: PositiveInt = 128
    hidden: PositiveInt = 256


class SCNN(ModelSource):
    """Two times three stages of convolution - normalisation - neuron, a fully connected stage, a linear read-out.

    An image enters column by column: a time step is one column, ``[C, H]``. Average pooling belongs to the stage after
    it, so that what passes between stages stays binary.
    """

    name = "scnn"
    summary = "1-D convolutions over an image's columns, one column a time step; for sequential CIFAR-10"
    source = (
        "gradient checkpointing + spike compression (ICLR 2026), src/scifar/models.py; after Fang et al., NeurIPS 2023"
    )
    options: ClassVar[type[SCNNOptions]] = SCNNOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; the sample is one column, ``(C, H)``.

        Raises:
            ValueError: not a column, or one of fewer than four pixels.
        """
        opt: SCNNOptions = self.opt
        if len(sample) != 2:
            raise ValueError(f"{self.name} takes columns [C, H], but the data has samples of shape {tuple(sample)}")
        inputs, height = sample
        if height < 4:
            raise ValueError(f"{self.name} halves its input 2 times: {height} is below 4")
        stages = []
        for index in range(6):
            stages.append(self._conv_stage(inputs, pooled=index == 3))
            inputs = opt.channels
        hidden = layer.Linear(inputs * (height // 2 // 2), opt.hidden, step_mode="m")
        stages.append(nn.Sequential(_pool(), layer.Flatten(step_mode="m"), hidden, make_neuron(opt)))
        return StagedModel(stages, read_out(opt.hidden, classes, opt.dropout), opt.norm)

    def _conv_stage(self, inputs: int, pooled: bool) -> nn.Sequential:
        opt: SCNNOptions = self.opt
        # The bias before batch normalisation has no effect; the published network has it.
        shape: dict[str, Any] = {"kernel_size": 3, "padding": 1, "bias": True}
        conv = layer.Conv1d(inputs, opt.channels, step_mode="m", **shape)
        return nn.Sequential(
            *([_pool()] if pooled else []), conv, make_norm(opt.channels, opt.norm, 1), make_neuron(opt)
        )


def _pool() -> nn.Module:
    return layer.AvgPool1d(2, 2, step_mode="m")
