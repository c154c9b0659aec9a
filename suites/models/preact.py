"""PreAct-ResNet of SLTT and of rate-based back-propagation, for images of CIFAR's size."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import Join, StagedOptions, image_shape, read_out
from suites.models.neurons import NeuronOptions, Reset, SurrogateName, make_neuron
from suites.models.norm import after_neuron, make_conv, make_norm

# SLTT (Meng et al., ICCV 2023), models/spiking_resnet.py: blocks of each of the four groups.
BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class SLTTNeuronOptions(NeuronOptions):
    """Neuron parameters of SLTT's and NF-ResNet's published training: train_SLTT.py and modules/neuron.py.

    There the reset is not detached (``detach_reset``); under SLTT itself that changes nothing, as no gradient passes
    from one step to the next.
    """

    tau: float = Field(1.1, gt=1.0, allow_inf_nan=False)
    v_reset: Reset = "soft"
    detach_reset: bool = False
    decay_input: bool = False
    surrogate: SurrogateName = "piecewise_quadratic"


class PreActResNetOptions(SLTTNeuronOptions, StagedOptions):
    """Options of :class:`PreActResNet`.

    Attributes:
        depth: 18 or 34.
        width: channels of the first group; they double from group to group.
        dropout: inside every block and before the read-out; one mask for all time steps.
    """

    depth: Literal[18, 34] = 18
    width: PositiveInt = 64


class PreActResNet(ModelSource):
    """The stem and every block are stages; normalisation, neuron, average pooling and linear layer are the head.

    A block is ``h = sn(bn(x)); conv(sn(bn(conv(h)))) + shortcut(h)``: what passes between blocks is real-valued.
    """

    name = "preact-resnet"
    summary = "PreAct-ResNet-18/34 for CIFAR: norm - neuron - conv, real-valued residual stream"
    source = "SLTT (Meng et al., ICCV 2023), models/spiking_resnet.py"
    options: ClassVar[type[PreActResNetOptions]] = PreActResNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; weights as published (He initialisation, fan-out)."""
        opt: PreActResNetOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=3)
        stages: list[nn.Module] = [make_conv(channels, opt.width, opt.norm, bias=False)]
        inputs = opt.width
        for group, count in enumerate(BLOCKS[opt.depth]):
            for number in range(count):
                outputs = opt.width * 2**group
                stages.append(self._block(inputs, outputs, stride=2 if group and not number else 1))
                inputs = outputs
        linear = read_out(inputs, classes, opt.dropout)
        head = nn.Sequential(*self._spikes(inputs), layer.AdaptiveAvgPool2d(1, step_mode="m"), *linear)
        model = StagedModel(stages, head, opt.norm)
        for module in model.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, layer.Linear):
                nn.init.zeros_(module.bias)
        return model

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        opt: PreActResNetOptions = self.opt
        drop = [layer.Dropout(opt.dropout, step_mode="m")] if opt.dropout else []
        branch = nn.Sequential(
            make_conv(inputs, outputs, opt.norm, bias=True, stride=stride),
            *self._spikes(outputs), *drop,
            make_conv(outputs, outputs, opt.norm, bias=True),
        )  # fmt: skip
        changed = stride != 1 or inputs != outputs
        shortcut = make_conv(inputs, outputs, opt.norm, bias=True, size=1, stride=stride) if changed else None
        return nn.Sequential(*self._spikes(inputs), Join(branch, shortcut))

    def _spikes(self, channels: int) -> list[nn.Module]:
        """Normalisation and neuron."""
        norm = self.opt.norm
        return [make_norm(channels, norm), make_neuron(self.opt), *after_neuron(norm)]
