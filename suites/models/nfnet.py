"""NF-ResNet: the normaliser-free spiking ResNet that OTTT and SLTT train on ImageNet.

No activation is normalised: weights are standardised and scaled, spikes are multiplied by 2.74, and a block divides its
input by the standard deviation ``beta`` that it has at the start of training::

    s = 2.74 sn(x / beta);   y = alpha g conv(2.74 sn(conv(s))) + shortcut

where the shortcut is ``x``, or ``conv1x1(s)`` where the size changes,
with a learnt scalar ``g`` and ``beta^2`` growing by ``alpha^2`` a block, from 1 after each change of size.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import image_shape, read_out
from suites.models.neurons import NeuronOptions, make_neuron
from suites.models.norm import SPIKE_SCALE, Scale, make_conv
from suites.models.preact import BLOCKS, SLTTNeuronOptions

WS: Literal["weight_standardised"] = "weight_standardised"


class NFResNetOptions(SLTTNeuronOptions):
    """Options of :class:`NFResNet`; neurons as in SLTT's training.

    Attributes:
        depth: 18 or 34.
        width: channels of the first group; they double from group to group.
        alpha: share of a block's residual.
        zero_init: ``g`` and the read-out's weights begin at zero, as published: in the first step only the read-out has
            a gradient. Where False, ``g`` begins at one, and every weight has one.
    """

    depth: Literal[18, 34] = 34
    width: PositiveInt = 64
    alpha: float = Field(0.2, gt=0.0, allow_inf_nan=False)
    zero_init: bool = True


class NFBlock(nn.Module):
    """A normaliser-free basic block, ``[T, N, inputs, H, W] -> [T, N, outputs, H / stride, W / stride]``.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution and of the shortcut.
        beta: standard deviation of the input at the start of training.
        options: neurons, ``alpha`` and the start value of ``g``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, beta: float, options: NFResNetOptions) -> None:
        super().__init__()
        self.alpha, self.beta = options.alpha, beta
        self.spikes = _spikes(options)
        changed = stride != 1 or inputs != outputs
        self.shortcut = make_conv(inputs, outputs, WS, bias=True, size=1, stride=stride) if changed else None
        self.residual = nn.Sequential(
            make_conv(inputs, outputs, WS, bias=True, stride=stride),
            _spikes(options),
            make_conv(outputs, outputs, WS, bias=True),
        )
        self.gain = nn.Parameter(torch.zeros(()) if options.zero_init else torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """In either step mode."""
        spikes = self.spikes(x / self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(spikes)
        return self.residual(spikes) * self.gain * self.alpha + shortcut


class NFResNet(ModelSource):
    """The stem and every block are stages; average pooling and linear layer are the head."""

    name = "nf-resnet"
    summary = "NF-ResNet-18/34: normaliser-free spiking ResNet with scaled weight standardisation"
    source = "OTTT (Xiao et al., NeurIPS 2022) and SLTT (Meng et al., ICCV 2023), models/spiking_resnet_imagenet.py"
    options: ClassVar[type[NFResNetOptions]] = NFResNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; weights as published (He initialisation, fan-out; biases zero)."""
        opt: NFResNetOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=5)
        stem = make_conv(channels, opt.width, WS, bias=True, size=7, stride=2)
        pool = layer.AvgPool2d(3, stride=2, padding=1, step_mode="m")
        stages: list[nn.Module] = [nn.Sequential(stem, pool)]
        inputs, variance = opt.width, 1.0
        for group, count in enumerate(BLOCKS[opt.depth]):
            outputs = opt.width * 2**group
            for number in range(count):
                stride = 2 if group and not number else 1
                stages.append(NFBlock(inputs, outputs, stride, variance**0.5, opt))
                variance = (variance if inputs == outputs else 1.0) + opt.alpha**2
                inputs = outputs
        head = nn.Sequential(layer.AdaptiveAvgPool2d(1, step_mode="m"), *read_out(inputs, classes, 0.0))
        model = StagedModel(stages, head, WS)
        for module in model.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, layer.Linear) and opt.zero_init:
                nn.init.zeros_(module.weight)
        return model


def _spikes(options: NeuronOptions) -> nn.Sequential:
    """Neuron and scale."""
    return nn.Sequential(make_neuron(options), Scale(SPIKE_SCALE))
