import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import functional, layer, neuron, surrogate

from suites.models.zoo import (
    SEWResNet,
    SEWResNetOptions,
    SpikingResNet,
    SpikingResNetOptions,
    SpikingVGG,
    SpikingVGGOptions,
)
from suites.torchvision_shim import ensure_torchvision
from tests.suites.nets import logits, single_steps

NEURON = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
SOURCES = {
    "spiking-vgg": (SpikingVGG, SpikingVGGOptions),
    "sew-resnet": (SEWResNet, SEWResNetOptions),
    "spiking-resnet": (SpikingResNet, SpikingResNetOptions),
}
DEPTHS = {"spiking-vgg": 11, "sew-resnet": 18, "spiking-resnet": 18}


def build(name, classes=7, channels=3, seed=0, **given):
    source, options = SOURCES[name]
    torch.manual_seed(seed)
    return source(options(**given)).build((channels, 32, 32), classes)


def original(name, depth, seed=0):
    """SpikingJelly's own model from the same seed, multi-step."""
    ensure_torchvision()
    from spikingjelly.activation_based.model import sew_resnet, spiking_resnet, spiking_vgg

    torch.manual_seed(seed)
    if name == "spiking-vgg":
        model = getattr(spiking_vgg, f"spiking_vgg{depth}_bn")(
            num_classes=7, spiking_neuron=neuron.LIFNode, norm_layer=layer.BatchNorm2d, **NEURON
        )
    elif name == "spiking-resnet":
        model = getattr(spiking_resnet, f"spiking_resnet{depth}")(
            num_classes=7, spiking_neuron=neuron.LIFNode, **NEURON
        )
    else:
        model = getattr(sew_resnet, f"sew_resnet{depth}")(
            num_classes=7, cnf="ADD", spiking_neuron=neuron.LIFNode, **NEURON
        )
    functional.set_step_mode(model, "m")
    return model


@pytest.mark.parametrize(
    ("name", "depth", "stages"),
    # VGG-11: 8 convolutions, 5 poolings, the adaptive one, 2 hidden layers. SEW: stem, pooling, blocks.
    [
        ("spiking-vgg", 11, 16),
        ("sew-resnet", 18, 10),
        ("sew-resnet", 34, 18),
        ("sew-resnet", 50, 18),
        ("spiking-resnet", 18, 10),
    ],
)
def test_a_staged_model_computes_what_spikingjellys_does(name, depth, stages):
    model, reference = build(name, depth=depth), original(name, depth)
    assert len(model.stages) == stages
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))
    x = torch.rand(2, 2, 3, 32, 32)
    for mode in (True, False):
        torch.manual_seed(1)  # dropout
        ours = logits(model.train(mode), x)
        torch.manual_seed(1)
        assert torch.equal(ours, logits(reference.train(mode), x))
    assert ours.shape == (2, 2, 7)
    states = zip(model.state_dict().items(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in states), "running statistics differ"


@pytest.mark.parametrize("name", SOURCES)
def test_per_step_normalisation_is_a_loop_of_single_steps(name):
    depth = DEPTHS[name]
    whole, loop = (build(name, depth=depth, norm="per_step") for _ in range(2))
    assert whole.normalisation == "per_step"
    x = torch.rand(2, 2, 3, 32, 32)
    torch.manual_seed(1)
    expected = logits(whole, x)
    torch.manual_seed(1)
    assert torch.allclose(expected, single_steps(loop, x), atol=1e-5)


def test_options_reach_the_neurons_and_the_blocks():
    model = build("sew-resnet", depth=18, neuron="if", v_reset="soft", norm="none", cnf="IAND")
    nodes = [m for m in model.modules() if isinstance(m, neuron.IFNode)]
    assert len(nodes) == 1 + 2 * 8 + 3  # stem, two a block, three down-sampling paths
    assert {node.v_reset for node in nodes} == {None}
    assert not any(isinstance(m, layer.BatchNorm2d) for m in model.modules())
    assert model.stages[2].cnf == "IAND"


@pytest.mark.parametrize("name", SOURCES)
def test_other_numbers_of_channels_get_a_first_convolution_like_the_original(name):
    depth = DEPTHS[name]
    rgb, events = build(name, depth=depth), build(name, depth=depth, channels=2)
    first, second = rgb.stages[0][0], events.stages[0][0]
    assert second.weight.shape == (first.weight.shape[0], 2, *first.weight.shape[2:])
    assert (second.stride, second.padding, second.bias is None) == (first.stride, first.padding, first.bias is None)
    assert second.weight.std().item() == pytest.approx(first.weight.std().item(), rel=0.1)
    assert logits(events.eval(), torch.rand(2, 1, 2, 32, 32)).shape == (2, 1, 7)


@pytest.mark.parametrize(("name", "depth"), [("sew-resnet", 101), ("spiking-vgg", 12)])
def test_depths_that_do_not_exist_are_refused(name, depth):
    with pytest.raises(ValidationError, match="depth"):
        SOURCES[name][1](depth=depth)


def test_an_input_too_small_for_vgg_is_refused():
    with pytest.raises(ValueError, match="28x28 is below 32x32"):
        SpikingVGG().build((1, 28, 28), 10)
