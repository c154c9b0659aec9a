"""VGG from a list of layers; by default the network of the memory claims on CIFAR10-DVS."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field
from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import StagedOptions, conv_stage, image_shape, make_pool, read_out

Pool = Literal["M", "A"]

# 64-128-P-256-256-P-512-512-P-512-512-P-FC of "gradient checkpointing + spike compression" (ICLR 2026), with average
# pooling as in SpikingJelly 2.0, examples/memopt/models.py, CIFAR10DVSVGG. Without the paper's TEBN.
CIFAR10_DVS: tuple[int | Pool, ...] = (64, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "A")


def _entry(value: Any) -> Any:
    if value in get_args(Pool) or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("must be a number of channels, 'M' (max pooling) or 'A' (average pooling)")


Entry = Annotated[int | Pool, BeforeValidator(_entry)]


class VGGOptions(StagedOptions):
    """Options of :class:`VGG`; the defaults are those of SpikingJelly's CIFAR10DVSVGG.

    Attributes:
        cfg: output channels of a 3x3 convolution stage, ``"M"`` for 2x2 max pooling, ``"A"`` for 2x2 average pooling.
    """

    cfg: Annotated[tuple[Entry, ...], Field(min_length=1)] = CIFAR10_DVS
    dropout: float = Field(0.25, ge=0.0, lt=1.0)
    # SpikingJelly's example writes 1.333; the paper's tau is 4/3, a leak factor of 1/4.
    tau: float = Field(4 / 3, gt=1.0, allow_inf_nan=False)
    decay_input: bool = False


class VGG(ModelSource):
    """Each convolution, with normalisation and neuron, is a stage.

    Average pooling belongs to the stage after it, as in SpikingJelly's checkpointed blocks, so that what passes between
    stages stays binary; max pooling keeps spikes binary and belongs to the stage before it, so that what passes is
    small. Average pooling after the last convolution is a stage of its own.
    """

    name = "vgg"
    summary = "VGG from a list of layers; default: the CIFAR10-DVS network of the checkpointing paper"
    source = "SpikingJelly 2.0, activation_based/examples/memopt/models.py"
    options: ClassVar[type[VGGOptions]] = VGGOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; weights as in SpikingJelly's example (He initialisation, fan-out)."""
        opt: VGGOptions = self.opt
        channels, height, width = image_shape(sample, self.name, sum(isinstance(entry, str) for entry in opt.cfg))
        stages: list[nn.Sequential] = []
        averaged: list[nn.Module] = []
        for entry in opt.cfg:
            if isinstance(entry, int):
                stages.append(nn.Sequential(*averaged, *conv_stage(channels, entry, opt.norm, opt, bias=True)))
                channels, averaged = entry, []
                continue
            height, width = height // 2, width // 2
            if entry == "A":
                averaged.append(make_pool("avg"))
            elif stages and not averaged:
                stages[-1].append(make_pool("max"))
            else:
                averaged.append(make_pool("max"))
        if averaged:
            stages.append(nn.Sequential(*averaged))
        model = StagedModel(stages, read_out(channels * height * width, classes, opt.dropout), opt.norm)
        for module in model.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return model
