"""SpikingJelly's own deep models, cut into stages.

The modules are SpikingJelly's, in the order of its forward pass, with the weights that it initialised: only the nesting
differs. SpikingJelly's model package imports torchvision, so it is imported when a model is built.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from spikingjelly.activation_based import functional, layer
from torch import nn

from harness.contracts import ModelSource, StagedModel
from suites.models.blocks import image_shape
from suites.models.neurons import NeuronOptions, make_neuron
from suites.models.norm import BatchNormMode, NormOptions, make_norm
from suites.torchvision_shim import ensure_torchvision

RGB = 3  # SpikingJelly's models are written for three input channels


class ZooOptions(NeuronOptions, NormOptions):
    """Options that all of SpikingJelly's models take: neuron and batch normalisation."""

    norm: BatchNormMode = "over_time"

    def arguments(self) -> dict[str, Any]:
        """Factories in the form that SpikingJelly's model constructors take."""
        return {"spiking_neuron": partial(make_neuron, self), "norm_layer": partial(_norm, mode=self.norm)}


class SpikingVGGOptions(ZooOptions):
    """Options of :class:`SpikingVGG`.

    Attributes:
        depth: 11, 13, 16 or 19 weight layers.
    """

    depth: Literal[11, 13, 16, 19] = 11


class SEWResNetOptions(ZooOptions):
    """Options of :class:`SEWResNet`.

    Attributes:
        depth: 18 or 34 (basic blocks), or 50 (bottlenecks).
        cnf: how a block joins its shortcut; ``ADD`` is the published choice (Fang et al., NeurIPS 2021).
    """

    depth: Literal[18, 34, 50] = 34
    cnf: Literal["ADD", "AND", "IAND"] = "ADD"


class SpikingResNetOptions(ZooOptions):
    """Options of :class:`SpikingResNet`.

    Attributes:
        depth: 18 or 34 (basic blocks), or 50 (bottlenecks).
    """

    depth: Literal[18, 34, 50] = 18


class SpikingVGG(ModelSource):
    """``spiking_vgg*_bn``: every convolution, pooling and hidden linear layer is a stage; the last one is the head."""

    name = "spiking-vgg"
    summary = "SpikingJelly's spiking VGG-11/13/16/19 with batch normalisation"
    source = "SpikingJelly 2.0, activation_based/model/spiking_vgg.py"
    options: ClassVar[type[SpikingVGGOptions]] = SpikingVGGOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`; the features are brought to 7x7 whatever the input."""
        opt: SpikingVGGOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=5)
        ensure_torchvision()
        from spikingjelly.activation_based.model import spiking_vgg

        net = getattr(spiking_vgg, f"spiking_vgg{opt.depth}_bn")(num_classes=classes, **opt.arguments())
        net.features[0] = _for_channels(net.features[0], channels)
        linear, spike, *rest = net.classifier.children()
        hidden = nn.Sequential(layer.Flatten(), linear, spike)
        stages = [*_conv_stages(net.features), net.avgpool, hidden, nn.Sequential(*rest[:3])]
        return _staged(stages, nn.Sequential(*rest[3:]), opt.norm)


class SEWResNet(ModelSource):
    """``sew_resnet*``: stem, max pooling and every residual block are stages; pooling and linear layer are the head."""

    name = "sew-resnet"
    summary = "SpikingJelly's SEW-ResNet-18/34/50 (spike-element-wise residual blocks)"
    source = "SpikingJelly 2.0, activation_based/model/sew_resnet.py"
    options: ClassVar[type[SEWResNetOptions]] = SEWResNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`."""
        opt: SEWResNetOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=0)
        ensure_torchvision()
        from spikingjelly.activation_based.model import sew_resnet

        net = getattr(sew_resnet, f"sew_resnet{opt.depth}")(cnf=opt.cnf, num_classes=classes, **opt.arguments())
        return _residual(net, channels, opt.norm)


class SpikingResNet(ModelSource):
    """``spiking_resnet*``: as :class:`SEWResNet`, but the shortcut is added before a block's last neuron."""

    name = "spiking-resnet"
    summary = "SpikingJelly's spiking ResNet-18/34/50 (neurons after the sum)"
    source = "SpikingJelly 2.0, activation_based/model/spiking_resnet.py"
    options: ClassVar[type[SpikingResNetOptions]] = SpikingResNetOptions

    def build(self, sample: tuple[int, ...], classes: int) -> StagedModel:
        """See :meth:`ModelSource.build`."""
        opt: SpikingResNetOptions = self.opt
        channels, _, _ = image_shape(sample, self.name, pools=0)
        ensure_torchvision()
        from spikingjelly.activation_based.model import spiking_resnet

        net = getattr(spiking_resnet, f"spiking_resnet{opt.depth}")(num_classes=classes, **opt.arguments())
        return _residual(net, channels, opt.norm)


def _residual(net: Any, channels: int, norm: BatchNormMode) -> StagedModel:
    """Stages of SpikingJelly's residual networks."""
    stem = nn.Sequential(_for_channels(net.conv1, channels), net.bn1, net.sn1)
    blocks = [block for group in (net.layer1, net.layer2, net.layer3, net.layer4) for block in group]
    return _staged([stem, net.maxpool, *blocks], nn.Sequential(net.avgpool, layer.Flatten(), net.fc), norm)


def _norm(channels: int, mode: BatchNormMode) -> nn.Module:
    return make_norm(channels, mode)


def _conv_stages(features: nn.Sequential) -> list[nn.Module]:
    """Cut a flat conv - norm - neuron - ... sequence before every convolution and around every pooling."""
    groups: list[list[nn.Module]] = []
    for module in features:
        if isinstance(module, (layer.Conv2d, layer.MaxPool2d)):
            groups.append([])
        groups[-1].append(module)
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups]


def _for_channels(conv: nn.Module, channels: int) -> nn.Module:
    """``conv``, or one like it for another number of input channels, initialised as SpikingJelly does."""
    if channels == RGB:
        return conv
    kernel: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
    new = layer.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **kernel)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _staged(stages: list[nn.Module], head: nn.Module, norm: BatchNormMode) -> StagedModel:
    model = StagedModel(stages, head, norm)
    functional.set_step_mode(model, "m")
    return model
