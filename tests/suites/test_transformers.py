"""Spikformer and QKFormer: SpikingJelly's numbers, in stages and in both step modes."""

import math

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import base, layer, neuron
from torch import nn

from methods.widths import input_bounds
from suites.models.blocks import Join
from suites.models.transformers import QKFormer, QKFormerOptions, Spikformer, SpikformerOptions, Tokens
from suites.torchvision_shim import ensure_torchvision
from tests.suites.nets import logits, single_steps

SOURCES = {"spikformer": (Spikformer, SpikformerOptions), "qkformer": (QKFormer, QKFormerOptions)}
SMALL = {
    "spikformer": {"depth": 2, "width": 32, "heads": 4, "patch": 4},
    "qkformer": {"depths": (1, 1, 2), "width": 32, "heads": (2, 2, 4)},
}
ALL = pytest.mark.parametrize("name", SOURCES)


def build(name, classes=5, channels=3, **given):
    source, options = SOURCES[name]
    torch.manual_seed(0)
    return source(options(**(SMALL[name] | given))).build((channels, 16, 16), classes)


def original(name, channels=3):
    """SpikingJelly's own model from the same seed, with its own default neurons."""
    ensure_torchvision()
    from spikingjelly.activation_based.model import qkformer, spikformer

    torch.manual_seed(0)
    common = {"T": 3, "in_channels": channels, "num_classes": 5, "embed_dims": 32}
    if name == "qkformer":
        return qkformer.QKFormer(num_heads=(2, 2, 4), depths=(1, 1, 2), **common)
    return spikformer.Spikformer(img_size_h=16, img_size_w=16, patch_size=4, num_heads=4, depths=2, **common)


def in_order(name, reference):
    """The parts of SpikingJelly's model in the order of its forward."""
    if name == "spikformer":
        return reference
    parts = []
    for number in (1, 2, 3):
        parts += [getattr(reference, f"patch_embed{number}"), getattr(reference, f"stage{number}")]
    return nn.ModuleList([*parts, reference.head])


def pictures(steps=3, channels=3):
    return torch.rand(steps, 2, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2


@ALL
@pytest.mark.parametrize("channels", [3, 2])
def test_a_staged_model_computes_what_spikingjellys_does(name, channels):
    model, reference, x = build(name, channels=channels), original(name, channels), pictures(channels=channels)
    pairs = zip(model.parameters(), in_order(name, reference).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "not SpikingJelly's initial weights"
    for mode in (True, False):
        ours, theirs = logits(model.train(mode), x), logits(reference.train(mode), x)
        if name == "qkformer":  # reads out the mean over time
            assert ours.shape == (3, 2, 5)
            assert torch.allclose(ours.mean(0), theirs, atol=1e-6)
        else:
            assert torch.equal(ours, theirs)
        assert theirs.std() > 0 or not mode, "nothing fires"
    states = zip(model.state_dict().items(), in_order(name, reference).state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in states), "running statistics differ"


@ALL
def test_gradients_are_spikingjellys(name):
    model, reference, x = build(name), original(name), pictures()
    for each in (model, reference):
        # SpikingJelly's QKFormer leaves the reset attached in some of its neurons.
        for node in each.modules():
            if isinstance(node, neuron.BaseNode):
                node.detach_reset = True
        out = logits(each, x)
        (out.mean(0) if out.dim() == 3 else out).square().sum().backward()
    pairs = zip(model.parameters(), in_order(name, reference).parameters(), strict=True)
    grads = [(a.grad, b.grad) for a, b in pairs]
    # Biases before batch normalisation have rounding noise for a gradient, so all are measured by one yardstick.
    size = max(float(b.abs().max()) for _, b in grads)
    assert all(a is not None and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * size) for a, b in grads)
    assert any(a.abs().sum() > 0 for a, _ in grads[:3]), "nothing reaches the stem"


@ALL
@pytest.mark.parametrize("norm", ["over_time", "per_step"])
def test_stages_compose_and_have_their_shapes(name, norm):
    model, x = build(name, norm=norm), pictures()
    assert model.normalisation == norm
    expected = logits(model.eval(), x)
    again, count = build(name, norm=norm).eval(), {"spikformer": 5 + 2 * 2, "qkformer": 2 + 2 + 2 * 4}[name]
    assert len(again.stages) == count
    for stage in again.stages:
        x = stage(x)
        assert x.shape[:2] == (3, 2)
    assert torch.equal(again.head(x), expected)


@ALL
def test_per_step_normalisation_is_a_loop_of_single_steps(name):
    whole, loop = (build(name, norm="per_step") for _ in range(2))
    x = pictures()
    assert torch.allclose(logits(whole, x), single_steps(loop, x), atol=1e-5)
    states = zip(whole.state_dict().items(), loop.state_dict().values(), strict=True)
    assert all(torch.allclose(a.float(), b.float(), atol=1e-6) for (_, a), b in states)
    assert not any(isinstance(m, layer.SeqToANNContainer) for m in whole.modules())


@ALL
def test_what_passes_between_stages_is_known_to_be_small_integers(name):
    model, x = build(name, v_threshold=0.3), 3 * pictures()
    bounds = input_bounds(model.stages)
    seen = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    logits(model, x)
    assert math.isinf(bounds[0]), "the image itself"
    for bound, values in list(zip(bounds, seen, strict=True))[1:]:
        assert torch.equal(values, values.round())
        assert 0 <= float(values.min()) <= float(values.max()) <= bound <= 2 + 2 * len(bounds)
    assert max(float(values.max()) for values in seen[1:]) > 1


def test_the_attention_has_a_threshold_of_its_own():
    model = build("spikformer", v_threshold=0.9, attention_threshold=0.4)
    attention = [m for m in model.modules() if type(m).__name__ == "SpikingSelfAttention"]
    assert {m.attn_lif.v_threshold for m in attention} == {0.4}
    others = {m.v_threshold for m in model.modules() if isinstance(m, neuron.LIFNode)}
    assert others == {0.4, 0.9}
    same = build("qkformer", attention_threshold=1.0)
    assert {m.v_threshold for m in same.modules() if isinstance(m, neuron.LIFNode)} == {1.0}


def test_the_stem_pools_before_or_after_its_neurons():
    before, after = (build("spikformer", pooling=place) for place in ("before_neuron", "after_neuron"))
    kinds = [[type(m).__name__ for m in model.stages[2]] for model in (before, after)]
    assert kinds[0] == ["Conv2d", "BatchNorm2d", "MaxPool2d", "LIFNode"]
    assert kinds[1] == ["Conv2d", "BatchNorm2d", "LIFNode", "MaxPool2d"]
    sizes = []
    for model in (before, after):
        logits(model, pictures())
        node = next(m for m in model.stages[2] if isinstance(m, neuron.LIFNode))
        sizes.append(tuple(node.v.shape[-2:]))
    assert sizes == [(8, 8), (16, 16)]


def test_the_image_may_have_any_size_that_the_pooling_allows():
    model = QKFormer(QKFormerOptions(**SMALL["qkformer"])).build((3, 19, 33), 4)
    assert logits(model, torch.rand(2, 1, 3, 19, 33)).shape == (2, 1, 4)
    with pytest.raises(ValueError, match="spikformer halves its input 4 times: 8x16 is below 16x16"):
        Spikformer().build((3, 8, 16), 10)


def test_tokens_stay_in_multi_step_mode_inside():
    inner = nn.Identity()
    tokens = Tokens(inner)
    seen = []
    inner.register_forward_hook(lambda module, given, out: seen.append(tuple(given[0].shape)))
    x = torch.rand(4, 2, 3, 5, 6)
    assert torch.equal(tokens(x), x)
    tokens.step_mode = "s"
    assert torch.equal(tokens(x[0]), x[0])
    assert seen == [(4, 2, 3, 30), (1, 2, 3, 30)]


def test_a_join_adds_its_branches():
    x = torch.rand(2, 3)
    assert torch.equal(Join(nn.ReLU())(x - 0.5), (x - 0.5).relu() + (x - 0.5))
    assert torch.equal(Join(nn.ReLU(), nn.Tanh())(x), x + x.tanh())


def test_every_module_follows_the_step_mode():
    for name in SOURCES:
        assert all(m.step_mode == "m" for m in build(name).modules() if isinstance(m, base.StepModule))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("spikformer", {"width": 36, "heads": 4}, "multiple of 8"),
        ("spikformer", {"width": 32, "heads": 5}, "32 channels cannot be divided among 5 heads"),
        ("spikformer", {"patch": 8}, "4 or 16"),
        ("spikformer", {"norm": "none"}, "'over_time' or 'per_step'"),
        ("qkformer", {"width": 32, "heads": (3, 2, 4)}, "8 channels cannot be divided among 3 heads"),
        ("qkformer", {"depths": (1, 2)}, "depths"),
        ("qkformer", {"attention": "spatial"}, "'token' or 'channel'"),
    ],
)
def test_wrong_options_give_one_clear_error(name, given, message):
    with pytest.raises(ValidationError, match=message) as caught:
        SOURCES[name][1](**given)
    assert caught.value.error_count() == 1
