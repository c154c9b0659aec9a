"""VGG from a list of layers; by default the network of the memory claims on CIFAR10-DVS."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from spikingjelly.activation_based import layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import StagedOptions, image_shape, make_pool, read_out
from suites.models.neurons import Reset, SurrogateName, make_neuron
from suites.models.norm import NormMode, TEBN2d, after_neuron, make_conv, make_norm

Pool = Literal["M", "A"]

# 64-128-P-256-256-P-512-512-P-512-512-P-FC of "gradient checkpointing + spike compression" (ICLR 2026), with average
# pooling as in SpikingJelly 2.0, examples/memopt/models.py, CIFAR10DVSVGG. Without the paper's TEBN.
CIFAR10_DVS: tuple[int | Pool, ...] = (64, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "A")

# Authors' code: OTTT (Xiao et al., NeurIPS 2022), models/spiking_vgg.py, cfgs["A"]; SLTT (Meng et al., ICCV 2023),
# models/spiking_vgg_bn.py, "VGG11". Both write "M" and pool by the average.
OTTT: tuple[int | Pool, ...] = (64, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512)
VGG11: tuple[int | Pool, ...] = (64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "A")


def _entry(value: Any) -> Any:
    if value in get_args(Pool) or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("must be a number of channels, 'M' (max pooling) or 'A' (average pooling)")


Entry = Annotated[int | Pool, BeforeValidator(_entry)]


class VGGOptions(StagedOptions):
    """Options of :class:`VGG`; the defaults are those of SpikingJelly's CIFAR10DVSVGG.

    Attributes:
        cfg: output channels of a 3x3 convolution stage, ``"M"`` for 2x2 max pooling, ``"A"`` for 2x2 average pooling.
        tebn: temporal effective batch normalisation for this many time steps, the cell's ``T``: a learnt factor for
            each step after normalisation over T x N. Left out: none.
        pool_to: bring the features to this height and width before the read-out by adaptive average pooling; 1 is
            global. Left out: they stay as they are.
        stage_dropout: probability of dropping a spike after each neuron; one mask for all time steps.
    """

    cfg: Annotated[tuple[Entry, ...], Field(min_length=1)] = CIFAR10_DVS
    dropout: float = Field(0.25, ge=0.0, lt=1.0)
    # SpikingJelly's example writes 1.333; the paper's tau is 4/3, a leak factor of 1/4.
    tau: float = Field(4 / 3, gt=1.0, allow_inf_nan=False)
    decay_input: bool = False
    tebn: PositiveInt | None = None
    pool_to: PositiveInt | None = None
    stage_dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _tebn_over_time(self) -> VGGOptions:
        if self.tebn is not None and self.norm != "over_time":
            raise ValueError(f"tebn normalises over T x N: it needs norm = 'over_time', not {self.norm!r}")
        return self


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
                stages.append(nn.Sequential(*averaged, *self._conv(channels, entry)))
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
        head = read_out(channels * (height * width if opt.pool_to is None else opt.pool_to**2), classes, opt.dropout)
        if opt.pool_to is not None:
            head.insert(0, layer.AdaptiveAvgPool2d(opt.pool_to, step_mode="m"))
        model = StagedModel(stages, head, opt.norm)
        self._initialise(model)
        return model

    def _conv(self, inputs: int, outputs: int) -> list[nn.Module]:
        """Convolution, normalisation, neuron."""
        opt: VGGOptions = self.opt
        norm = make_norm(outputs, opt.norm) if opt.tebn is None else TEBN2d(opt.tebn, outputs)
        drop = [layer.Dropout(opt.stage_dropout, step_mode="m")] if opt.stage_dropout else []
        return [make_conv(inputs, outputs, opt.norm, bias=True), norm, make_neuron(opt), *after_neuron(opt.norm), *drop]

    def _initialise(self, model: StagedModel) -> None:
        for module in model.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class OTTTVGGOptions(VGGOptions):
    """Options of :class:`OTTTVGG`: as of :class:`VGG`; the defaults are the authors' (train_cifar.py)."""

    cfg: Annotated[tuple[Entry, ...], Field(min_length=1)] = OTTT
    norm: NormMode = "weight_standardised"
    tau: float = Field(2.0, gt=1.0, allow_inf_nan=False)
    v_reset: Reset = "soft"
    surrogate: SurrogateName = "sigmoid"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    pool_to: PositiveInt | None = 1


class OTTTVGG(VGG):
    """:class:`VGG` with OTTT's layers, neurons, scaled weight standardisation and initial weights."""

    name = "vgg-ottt"
    summary = "OTTT's VGG for CIFAR: scaled weight standardisation, global average pooling"
    source = "OTTT (Xiao et al., NeurIPS 2022), models/spiking_vgg.py, online_spiking_vgg11_ws"
    options: ClassVar[type[VGGOptions]] = OTTTVGGOptions

    def _initialise(self, model: StagedModel) -> None:
        super()._initialise(model)
        for module in model.modules():
            if isinstance(module, layer.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, layer.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)


class SLTTVGGOptions(VGGOptions):
    """Options of :class:`SLTTVGG`: as of :class:`VGG`; the defaults are the authors' (train_SLTT.py, README).

    Published with ``stage_dropout = 0.3`` on CIFAR10-DVS and 0.4 on DVS128 Gesture. There the reset is not detached
    (``detach_reset``); under SLTT itself that changes nothing.
    """

    cfg: Annotated[tuple[Entry, ...], Field(min_length=1)] = VGG11
    norm: NormMode = "per_step"
    tau: float = Field(1.1, gt=1.0, allow_inf_nan=False)
    v_reset: Reset = "soft"
    detach_reset: bool = False
    surrogate: SurrogateName = "piecewise_quadratic"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    pool_to: PositiveInt | None = 7
    stage_dropout: float = Field(0.3, ge=0.0, lt=1.0)


class SLTTVGG(OTTTVGG):
    """:class:`VGG` with SLTT's layers and neurons; initial weights as OTTT's."""

    name = "vgg-sltt"
    summary = "SLTT's VGG-11 for event data: batch statistics per step, features brought to 7x7"
    source = "SLTT (Meng et al., ICCV 2023), models/spiking_vgg_bn.py"
    options: ClassVar[type[VGGOptions]] = SLTTVGGOptions
