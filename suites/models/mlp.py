"""A fully connected network: what it carries over time, it carries in its membranes."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import StagedOptions, read_out
from suites.models.neurons import make_neuron
from suites.models.norm import NormMode, after_neuron, make_norm


class MLPOptions(StagedOptions):
    """Options of :class:`MLP`.

    Attributes:
        hidden: neurons of each stage.
    """

    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 128)


class MLP(ModelSource):
    """Stages of linear - normalisation - neuron, and a linear read-out; no connection goes back.

    Between two time steps nothing passes but a neuron's own membrane, so neurons with a long ``tau`` are the only
    memory that the network has. Samples of any shape are flattened.
    """

    name = "mlp"
    summary = "fully connected: linear - norm - neuron per stage, linear read-out; its memory is the membranes"
    source = "-"
    options: ClassVar[type[MLPOptions]] = MLPOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`."""
        opt: MLPOptions = self.opt
        inputs = torch.Size(sample).numel()
        stages = []
        for index, outputs in enumerate(opt.hidden):
            flatten = [layer.Flatten(step_mode="m")] if index == 0 and len(sample) != 1 else []
            linear, norm = _weights(inputs, outputs, opt.norm)
            stages.append(nn.Sequential(*flatten, linear, norm, make_neuron(opt), *after_neuron(opt.norm)))
            inputs = outputs
        return StagedModel(stages, read_out(inputs, classes, opt.dropout), opt.norm)


def _weights(inputs: int, outputs: int, mode: NormMode) -> tuple[nn.Module, nn.Module]:
    """A linear layer and its normalisation, ``[T, N, inputs] -> [T, N, outputs]``."""
    if mode == "weight_standardised":
        return layer.WSLinear(inputs, outputs, step_mode="m"), nn.Identity()
    if mode == "none":
        return layer.Linear(inputs, outputs, step_mode="m"), nn.Identity()
    # Batch normalisation subtracts the mean, so a bias before it would be a parameter without effect.
    return layer.Linear(inputs, outputs, bias=False, step_mode="m"), make_norm(outputs, mode, dims=1)
