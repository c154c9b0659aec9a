"""Networks with scaled weight standardisation instead of batch normalisation."""

import math

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import layer
from torch import nn
from torch.nn import functional as F

from suites.models.convnet import ConvNet, ConvNetOptions
from suites.models.norm import SPIKE_SCALE, Scale
from suites.models.vgg import VGG, VGGOptions
from suites.models.zoo import SEWResNetOptions, SpikingVGGOptions
from tests.suites.nets import logits, single_steps

NETS = {
    "convnet": lambda: ConvNet(ConvNetOptions(channels=[4, 6], norm="weight_standardised")),
    "vgg": lambda: VGG(VGGOptions(cfg=[4, "M", 6, "A"], dropout=0.0, norm="weight_standardised")),
}


def build(name):
    torch.manual_seed(0)
    return NETS[name]().build((3, 8, 8), 5)


def frames():
    return torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETS)
def test_every_convolution_is_standardised_and_every_neuron_scaled(name):
    model = build(name)
    assert model.normalisation == "weight_standardised"
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == sum(isinstance(m, Scale) for m in model.modules()) == 2
    for conv in convs:
        assert type(conv) is layer.WSConv2d
        assert conv.bias is not None
        weight = conv.get_weight()
        assert torch.allclose(weight.mean((1, 2, 3)), torch.zeros(len(weight)), atol=1e-6)
        assert torch.allclose(weight.square().sum((1, 2, 3)), torch.ones(len(weight)), rtol=0.05)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
    # What a scale multiplies are spikes.
    seen = []
    for module in model.modules():
        if isinstance(module, Scale):
            module.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    logits(model, frames())
    for spikes, out in seen:
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(out, spikes * SPIKE_SCALE)
    assert len(seen) == 2
    assert any(spikes.any() for spikes, _ in seen)


def test_the_first_stage_by_hand():
    model, x = build("convnet"), frames()
    conv, norm, node, scale, pool = model.stages[0]
    weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    weight = weight / (weight.var((1, 2, 3), keepdim=True) * weight[0].numel() + conv.eps).sqrt()
    current = F.conv2d(x.flatten(0, 1), weight, conv.bias, padding=1).unflatten(0, x.shape[:2])
    expected = F.max_pool2d(node(current).flatten(0, 1) * 2.74, 2)
    node.reset()
    assert isinstance(norm, nn.Identity)
    assert torch.allclose(model.stages[0](x).flatten(0, 1), expected)
    assert isinstance(scale, Scale)
    assert isinstance(pool, layer.MaxPool2d)


@pytest.mark.parametrize("name", NETS)
def test_a_multi_step_pass_is_a_loop_of_single_steps(name):
    model = build(name)
    assert torch.allclose(logits(model, frames()), single_steps(model, frames()), atol=1e-6)


def test_the_scale_gives_spikes_of_a_normal_input_unit_variance():
    rate = 0.5 * math.erfc(1 / math.sqrt(2))
    assert 1 / math.sqrt(rate * (1 - rate)) == pytest.approx(SPIKE_SCALE, abs=0.005)


@pytest.mark.parametrize("options", [SpikingVGGOptions, SEWResNetOptions])
def test_spikingjellys_models_have_no_weight_standardised_form(options):
    with pytest.raises(ValidationError, match="over_time"):
        options(norm="weight_standardised")
