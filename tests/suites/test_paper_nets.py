"""The papers' own networks: layers, equations and neurons as published."""

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import layer, neuron
from torch import nn

from harness.contracts import reset_states
from suites.models.nfnet import NFResNet, NFResNetOptions
from suites.models.norm import SPIKE_SCALE
from suites.models.preact import PreActResNet, PreActResNetOptions
from suites.models.scnn import SCNN, SCNNOptions
from suites.models.vgg import OTTT, OTTTVGG, SLTTVGG, VGG, VGG11, OTTTVGGOptions, SLTTVGGOptions, VGGOptions
from tests.suites.nets import logits, single_steps

BUILDS = [
    (SCNN, SCNNOptions, {"channels": 6, "hidden": 5}, (3, 8), ["per_step", "none"]),
    (PreActResNet, PreActResNetOptions, {"width": 4}, (3, 8, 8), ["per_step", "none", "weight_standardised"]),
    (NFResNet, NFResNetOptions, {"width": 4, "depth": 18, "zero_init": False}, (3, 32, 32), [None]),
    (OTTTVGG, OTTTVGGOptions, {"cfg": (4, "A", 6)}, (3, 8, 8), [None, "per_step"]),
    (SLTTVGG, SLTTVGGOptions, {"cfg": (4, "A", 6), "stage_dropout": 0.0}, (2, 8, 8), [None]),
]
CASES = [(*build[:4], norm) for build in BUILDS for norm in build[4]]


def build(source, options, given, sample, norm=None, classes=5):
    torch.manual_seed(0)
    return source(options(**(given | ({} if norm is None else {"norm": norm})))).build(sample, classes)


def sequence(sample, steps=3, batch=4):
    return torch.rand(steps, batch, *sample, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].name}-{c[4]}")
def test_a_multi_step_pass_is_a_loop_of_single_steps(case):
    x = sequence(case[3])
    whole, loop = build(*case), build(*case)
    expected = logits(whole, x)
    assert expected.shape == (3, 4, 5)
    assert torch.allclose(expected, single_steps(loop, x), atol=1e-5)
    for (name, a), b in zip(whole.state_dict().items(), loop.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), name


@pytest.mark.parametrize("case", [c for c in CASES if c[4] in (None, "per_step")], ids=lambda c: c[0].name)
def test_every_parameter_gets_a_gradient_and_every_layer_fires(case):
    source, options, given, sample, norm = case
    model = build(source, options, given | {"v_threshold": 0.2}, sample, norm)
    rates = []
    for node in model.modules():
        if isinstance(node, neuron.BaseNode):
            node.register_forward_hook(lambda module, given, out: rates.append(float(out.detach().mean())))
    logits(model, 3 * sequence(sample, batch=8)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert rates
    assert min(rates) > 0


# Scaled weight standardisation, layers and neurons of OTTT ------------------------------------------------------------


def test_ottts_vgg_is_the_published_one():
    model = build(OTTTVGG, OTTTVGGOptions, {}, (3, 32, 32), classes=10)
    convs = [m for m in model.modules() if isinstance(m, layer.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert all(isinstance(c, layer.WSConv2d) for c in convs)
    assert [type(m).__name__ for m in model.head] == ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert model.head[-1].in_features == 512
    assert model.head[-1].weight.std().item() == pytest.approx(0.01, rel=0.1)
    nodes = {
        (m.tau, m.v_reset, m.decay_input, m.detach_reset, type(m.surrogate_function).__name__)
        for m in model.modules()
        if isinstance(m, neuron.LIFNode)
    }
    assert nodes == {(2.0, None, False, True, "Sigmoid")}
    # models/spiking_vgg.py, cfgs["A"], by its own words: three poolings, none at the end.
    assert OTTT.count("A") == 3
    assert OTTT[-1] == 512


def test_ottts_vgg_computes_what_spikingjellys_does():
    from spikingjelly.activation_based.model.spiking_vggws_ottt import ottt_spiking_vggws

    model = build(OTTTVGG, OTTTVGGOptions, {"surrogate": "sigmoid"}, (3, 32, 32), classes=10).eval()
    torch.manual_seed(0)
    reference = ottt_spiking_vggws(num_classes=10).eval()
    weights = list(reference.parameters())
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), weights, strict=True):
            ours.copy_(theirs)
    x = sequence((3, 32, 32), steps=2, batch=2)
    reset_states(model)
    with torch.no_grad():
        expected = torch.stack([_plain(reference(step)) for step in x])
        assert torch.allclose(model(x), expected, atol=1e-5)


def _plain(out):
    """OTTT's modules pass spikes together with traces in training; in evaluation the spikes alone."""
    return out[0] if isinstance(out, (list, tuple)) else out


def test_sltts_vgg_is_the_published_one():
    model = build(SLTTVGG, SLTTVGGOptions, {}, (2, 48, 48), classes=10)
    assert VGG11 == (64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512, "A")
    assert model.normalisation == "per_step"
    assert model.head[-1].in_features == 512 * 7 * 7
    assert sum(isinstance(m, layer.Dropout) for m in model.modules()) == 8
    nodes = {
        (m.tau, m.v_reset, m.decay_input, type(m.surrogate_function).__name__)
        for m in model.modules()
        if isinstance(m, neuron.LIFNode)
    }
    assert nodes == {(1.1, None, False, "PiecewiseQuadratic")}


# Temporal effective batch normalisation -------------------------------------------------------------------------------


def test_tebn_is_normalisation_over_time_and_a_learnt_factor_for_each_step():
    small = {"cfg": (4, "A", 6), "dropout": 0.0}
    plain = build(VGG, VGGOptions, small, (2, 8, 8))
    model = build(VGG, VGGOptions, small | {"tebn": 3}, (2, 8, 8))
    assert model.normalisation == "over_time"
    added = sorted(set(model.state_dict()) - set(plain.state_dict()))
    assert added == ["stages.0.1.scale", "stages.1.2.scale"]
    x = sequence((2, 8, 8))
    assert torch.allclose(logits(model, x), logits(plain, x)), "the factors begin at one"
    norm = model.stages[0][1]
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    y = torch.randn(3, 4, 4, 8, 8)
    flat = y.transpose(1, 2).transpose(0, 1).flatten(1)  # [C, T * N * H * W]
    mean, var = flat.mean(1).view(1, 1, 4, 1, 1), flat.var(1, unbiased=False).view(1, 1, 4, 1, 1)
    expected = (y - mean) / (var + norm.eps).sqrt() * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1, 1)
    assert torch.allclose(norm(y), expected, atol=1e-5)


def test_tebn_needs_its_number_of_steps_and_statistics_over_time():
    model = build(VGG, VGGOptions, {"cfg": (4,), "tebn": 4}, (2, 8, 8))
    with pytest.raises(ValueError, match=r"built for T = 4 .*, but the input has 3"):
        logits(model, sequence((2, 8, 8)))
    with pytest.raises(ValidationError, match="it needs norm = 'over_time', not 'per_step'"):
        VGGOptions(tebn=4, norm="per_step")


def test_features_can_be_brought_to_a_size():
    for side, features in ((None, 6 * 16), (1, 6), (7, 6 * 49)):
        given = {"cfg": (6, "A"), "dropout": 0.0} | ({} if side is None else {"pool_to": side})
        model = build(VGG, VGGOptions, given, (2, 8, 8))
        assert model.head[-1].in_features == features
        assert logits(model, sequence((2, 8, 8))).shape == (3, 4, 5)


# SCNN -----------------------------------------------------------------------------------------------------------------


def test_the_scnn_takes_columns():
    model = build(SCNN, SCNNOptions, {}, (3, 32), classes=10)
    kinds = [[type(m).__name__ for m in stage] for stage in model.stages]
    plain = ["Conv1d", "BatchNorm1d", "LIFNode"]
    assert kinds == [plain] * 3 + [["AvgPool1d", *plain]] + [plain] * 2 + [
        ["AvgPool1d", "Flatten", "Linear", "LIFNode"]
    ]
    hidden = model.stages[-1][2]
    assert (hidden.in_features, hidden.out_features, model.head[-1].in_features) == (1024, 256, 256)
    assert logits(model, torch.rand(32, 2, 3, 32)).shape == (32, 2, 10)


@pytest.mark.parametrize(("sample", "message"), [((3, 32, 32), "takes columns"), ((3, 2), "2 is below 4")])
def test_the_scnn_refuses_what_is_no_column(sample, message):
    with pytest.raises(ValueError, match=message):
        SCNN().build(sample, 10)


# Residual networks ----------------------------------------------------------------------------------------------------


def test_a_preact_block_is_its_equations():
    model = build(PreActResNet, PreActResNetOptions, {"width": 4, "norm": "per_step"}, (3, 8, 8)).double().eval()
    block = model.stages[3]  # the first of the second group: stride 2, its shortcut a convolution
    norm, node, join = block
    assert [type(m).__name__ for m in join.branch] == ["Conv2d", "PerStepBatchNorm2d", "LIFNode", "Conv2d"]
    assert (join.shortcut.kernel_size, join.shortcut.stride) == ((1, 1), (2, 2))
    x = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    out = logits(block, x)
    reset_states(block)
    spikes = node(norm(x))
    conv1, norm2, node2, conv2 = join.branch
    assert torch.equal(out, conv2(node2(norm2(conv1(spikes)))) + join.shortcut(spikes))
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert isinstance(model.stages[1][2].shortcut, nn.Identity)


def test_a_preact_resnet_18_has_its_layers():
    model = build(PreActResNet, PreActResNetOptions, {}, (3, 32, 32), classes=10)
    convs = [m for m in model.modules() if isinstance(m, layer.Conv2d)]
    assert len(convs) == 1 + 2 * 8 + 3
    assert [c.bias is not None for c in convs] == [False] + [True] * 19
    assert len(model.stages) == 9


def test_an_nf_block_is_its_equations():
    model = build(NFResNet, NFResNetOptions, {"width": 4, "depth": 18}, (3, 32, 32)).double().eval()
    betas = [stage.beta**2 for stage in model.stages[1:]]
    # 1, then 0.04 more a block; from 1 again after a change of size
    assert betas == pytest.approx([1.0, 1.04, 1.08, 1.04, 1.08, 1.04, 1.08, 1.04])
    block = model.stages[3]
    with torch.no_grad():
        block.gain.fill_(0.7)
    x = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    out = logits(block, x)
    reset_states(block)
    conv1, spikes2, conv2 = block.residual
    s = SPIKE_SCALE * block.spikes[0](x / 1.08**0.5)
    expected = 0.2 * 0.7 * conv2(spikes2(conv1(s))) + block.shortcut(s)
    assert torch.allclose(out, expected, atol=1e-12)
    assert model.stages[1].shortcut is None


def test_an_nf_resnet_begins_at_zero_as_published():
    model = build(NFResNet, NFResNetOptions, {"width": 4, "depth": 18}, (3, 32, 32))
    assert not model.head[-1].weight.any()
    assert not any(stage.gain.any() for stage in model.stages[1:])
    logits(model, sequence((3, 32, 32), steps=2, batch=2)).square().sum().backward()
    assert not any(p.grad.any() for name, p in model.named_parameters() if "stages" in name)
