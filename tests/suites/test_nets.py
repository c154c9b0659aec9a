import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import base, layer
from spikingjelly.activation_based.examples.memopt.models import CIFAR10DVSVGG

from suites.models.convnet import ConvNet, ConvNetOptions
from suites.models.vgg import VGG, VGGOptions
from tests.suites.nets import copy_in_order, logits, single_steps

SMALL_VGG = {"cfg": (4, "M", 6, "A"), "dropout": 0.0}
BUILDS = [
    (ConvNet, ConvNetOptions, {"channels": (4, 6)}),
    (ConvNet, ConvNetOptions, {"channels": (4,), "pooling": "avg", "head": "global"}),
    (VGG, VGGOptions, SMALL_VGG),
]


def build(source, options, given, sample=(2, 8, 8), classes=5, seed=0):
    torch.manual_seed(seed)
    return source(options(**given)).build(sample, classes)


@pytest.mark.parametrize(("source", "options", "given"), BUILDS)
@pytest.mark.parametrize("norm", ["over_time", "per_step", "none"])
@pytest.mark.parametrize("steps", [1, 3])
def test_logits_have_all_time_steps(source, options, given, norm, steps):
    model = build(source, options, given | {"norm": norm})
    assert model.normalisation == norm
    assert logits(model, torch.rand(steps, 4, 2, 8, 8)).shape == (steps, 4, 5)
    assert all(m.step_mode == "m" for m in model.modules() if isinstance(m, base.StepModule))


@pytest.mark.parametrize(("source", "options", "given"), BUILDS)
@pytest.mark.parametrize("norm", ["per_step", "none"])
def test_a_multi_step_pass_is_a_loop_of_single_steps(source, options, given, norm):
    x = torch.rand(3, 4, 2, 8, 8) * 2
    whole, loop = (build(source, options, given | {"norm": norm}) for _ in range(2))
    assert torch.allclose(logits(whole, x), single_steps(loop, x), atol=1e-6)
    for (name, a), b in zip(whole.state_dict().items(), loop.state_dict().values(), strict=True):
        assert torch.allclose(a, b), name


@pytest.mark.parametrize(("source", "options", "given"), BUILDS)
def test_normalised_models_share_their_keys_and_initial_weights(source, options, given):
    over, per = (build(source, options, given | {"norm": norm}) for norm in ("over_time", "per_step"))
    assert over.state_dict().keys() == per.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(over.parameters(), per.parameters(), strict=True))
    x = torch.rand(4, 8, 2, 8, 8) * torch.tensor([0.5, 1, 2, 4]).view(4, 1, 1, 1, 1)
    assert not torch.equal(logits(over, x), logits(per, x))


@pytest.mark.parametrize(("source", "options", "given"), BUILDS)
def test_every_parameter_gets_a_gradient(source, options, given):
    model = build(source, options, given)
    logits(model, torch.rand(3, 8, 2, 8, 8) * 3).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent


def test_the_seed_decides_the_weights():
    same, again, other = (build(*BUILDS[0], seed=seed) for seed in (0, 0, 1))
    weights = [next(m.parameters()) for m in (same, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_stage_is_conv_norm_neuron_pool():
    model = build(ConvNet, ConvNetOptions, {"channels": (4, 6), "v_threshold": 0.7})
    kinds = [[type(m).__name__ for m in stage] for stage in model.stages]
    assert kinds == [["Conv2d", "BatchNorm2d", "LIFNode", "MaxPool2d"]] * 2
    assert {m.v_threshold for m in model.modules() if isinstance(m, base.MemoryModule)} == {0.7}


@pytest.mark.parametrize("norm", ["over_time", "none"])
def test_a_convolution_has_a_bias_where_no_norm_follows(norm):
    model = build(ConvNet, ConvNetOptions, {"norm": norm})
    convs = [m for m in model.modules() if isinstance(m, layer.Conv2d)]
    assert {c.bias is None for c in convs} == {norm != "none"}


def test_max_pooling_keeps_spikes_binary_and_average_pooling_does_not():
    x = torch.rand(3, 4, 2, 8, 8) * 3
    values = {}
    for pooling in ("max", "avg"):
        model = build(ConvNet, ConvNetOptions, {"pooling": pooling})
        values[pooling] = set(model.stages(x).unique().tolist())
    assert values["max"] == {0.0, 1.0}
    assert {0.25, 0.5} <= values["avg"] <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_dropout_draws_one_mask_for_all_steps_and_is_off_in_evaluation():
    model = build(ConvNet, ConvNetOptions, {"dropout": 0.5})
    drop = next(m for m in model.head if isinstance(m, layer.Dropout))
    out = drop(torch.ones(3, 4, 20))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out[0], out[1])
    x = torch.rand(2, 4, 2, 8, 8)
    model.eval()
    assert torch.equal(logits(model, x), logits(model, x))


@pytest.mark.parametrize(
    ("source", "sample", "message"),
    [
        (ConvNet, (1, 3, 8), "convnet halves its input 2 times: 3x8 is below 4x4"),
        (VGG, (2, 8, 8), "vgg halves its input 4 times: 8x8 is below 16x16"),
        (ConvNet, (64,), "convnet takes images"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(source, sample, message):
    with pytest.raises(ValueError, match=message):
        source().build(sample, 10)


def test_odd_sizes_are_floored_by_every_pooling():
    model = build(ConvNet, ConvNetOptions, {"channels": (4, 6)}, sample=(1, 11, 7))
    assert logits(model, torch.rand(2, 3, 1, 11, 7)).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (ConvNetOptions, {"channels": ()}, "at least 1"),
        (ConvNetOptions, {"channels": (8, 0)}, "greater than 0"),
        (ConvNetOptions, {"pooling": "sum"}, "'max' or 'avg'"),
        (ConvNetOptions, {"dropout": 1.0}, "less than 1"),
        (ConvNetOptions, {"width": 3}, "Extra inputs"),
        (VGGOptions, {"cfg": (8, "P")}, "number of channels, 'M'"),
        (VGGOptions, {"cfg": (8, -1)}, "number of channels, 'M'"),
        (VGGOptions, {"cfg": (8, True)}, "number of channels, 'M'"),
        (VGGOptions, {"cfg": (8, 2.5)}, "number of channels, 'M'"),
    ],
)
def test_wrong_options_give_one_clear_error(options, given, message):
    with pytest.raises(ValidationError, match=message) as caught:
        options(**given)
    assert caught.value.error_count() == 1


def test_the_default_vgg_is_spikingjellys_cifar10dvs_network():
    model = build(VGG, VGGOptions, {"tau": 1.333}, sample=(2, 48, 48), classes=10)
    original = CIFAR10DVSVGG()
    copy_in_order(original, model)
    x = torch.rand(2, 2, 2, 48, 48) * 2
    assert torch.equal(logits(model.eval(), x), original.eval()(x.transpose(0, 1)))
    assert len(model.stages) == 9


def test_the_default_vggs_constants():
    options = VGGOptions()
    assert (options.tau, options.dropout, options.decay_input) == (4 / 3, 0.25, False)
    assert (options.v_reset, options.detach_reset, options.surrogate) == (0.0, True, "atan")


def test_vgg_weights_are_he_initialised():
    model = build(VGG, VGGOptions, {"cfg": (64, 64)})
    conv = model.stages[1][0]
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
