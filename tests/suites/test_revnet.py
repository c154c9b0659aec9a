"""RevSResNet: the published layout, its equations, and what its options may be."""

import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import base, layer, neuron

from suites.models.revnet import PUBLISHED, Coupling, RevResNet, RevResNetOptions
from tests.suites.nets import logits, single_steps

SMALL = {"blocks": (2, 1), "widths": (4, 6)}


def build(sample=(2, 8, 8), classes=5, **options):
    torch.manual_seed(0)
    return RevResNet(RevResNetOptions(**options)).build(sample, classes)


def test_stages_are_stem_blocks_and_transitions():
    model = build(**SMALL, tau=1.5)
    kinds = [type(stage).__name__ for stage in model.stages]
    assert kinds == ["Sequential", "Coupling", "Coupling", "Sequential", "Coupling"]
    assert [type(m).__name__ for m in model.stages[0]] == ["Conv2d", "BatchNorm2d"]
    assert [type(m).__name__ for m in model.stages[1].f] == ["LIFNode", "Conv2d", "BatchNorm2d"] * 2
    assert [type(m).__name__ for m in model.stages[3]] == ["LIFNode", "AvgPool2d", "Conv2d", "BatchNorm2d"]
    assert [type(m).__name__ for m in model.head] == ["LIFNode", "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert {m.tau for m in model.modules() if isinstance(m, neuron.LIFNode)} == {1.5}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_depth_counts_convolutions_and_the_read_out(depth):
    options = RevResNetOptions(depth=depth)
    assert (options.blocks, options.widths, options.stem) == PUBLISHED[depth]
    model = build(sample=(3, 32, 32), depth=depth)
    weights = [m for m in model.modules() if isinstance(m, (layer.Conv2d, layer.Linear))]
    assert len(weights) == depth


def test_published_sizes():
    # README of the published code: RevSResNet21 has 11.05 million parameters, RevSResNet37 23.59 (100 classes).
    def parameters(depth):
        with torch.device("meta"):
            return sum(p.numel() for p in build(sample=(3, 32, 32), classes=100, depth=depth).parameters())

    assert parameters(21) == pytest.approx(11.05e6, rel=0.01)
    assert parameters(37) == pytest.approx(23.59e6, rel=0.01)


def test_a_block_is_its_equations_and_can_be_inverted():
    torch.manual_seed(1)
    block = build(**SMALL).stages[1].double()
    x = torch.randn(3, 4, 8, 8, 8, dtype=torch.float64)
    y = logits(block, x)
    f, g, dim = block.reversible_coupling()
    (x1, x2), (y1, y2) = x.chunk(2, dim), y.chunk(2, dim)
    assert torch.equal(y1, x1 + logits(f, x2))
    assert torch.equal(y2, x2 + logits(g, y1))
    back_two = y2 - logits(g, y1)
    back = torch.cat([y1 - logits(f, back_two), back_two], dim)
    assert float((back - x).detach().abs().max()) <= 1e-12


@pytest.mark.parametrize("norm", ["per_step", "none", "weight_standardised"])
def test_a_multi_step_pass_is_a_loop_of_single_steps(norm):
    x = torch.rand(3, 4, 2, 8, 8) * 2
    whole, loop = (build(**SMALL, norm=norm) for _ in range(2))
    assert whole.normalisation == norm
    assert torch.allclose(logits(whole, x), single_steps(loop, x), atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = build(**SMALL)
    logits(model, torch.rand(3, 8, 2, 8, 8) * 3).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert all(m.step_mode == "m" for m in model.modules() if isinstance(m, base.StepModule))


def test_the_stream_stays_in_float32_inside_autocast():
    model, x = build(**SMALL), torch.rand(2, 4, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.stages[0](x)
        assert hidden.dtype == torch.bfloat16
        assert model.stages[1](hidden).dtype == torch.float32
    assert build(**SMALL).bfloat16().stages[1](torch.rand(2, 4, 8, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_a_stem_for_events_quarters_the_resolution():
    model = build(sample=(2, 16, 16), stem="events", blocks=(1,), widths=(4,))
    assert model.stages[0](torch.rand(2, 3, 2, 16, 16)).shape == (2, 3, 8, 4, 4)


def test_weights_are_he_initialised():
    weight = build(blocks=(1,), widths=(64,)).stages[1].f[1].weight
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1, 1), "widths": (4,)}, "blocks has 2 stages, widths 1: they must be as many"),
        ({"blocks": ()}, "at least 1 item"),
        ({"blocks": (0,), "widths": (4,)}, "greater than 0"),
        ({"depth": 109}, "Input should be 21, 24 or 37"),
        ({"stem": "dvs"}, "'image' or 'events'"),
        ({"depht": 21}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValidationError, match=message):
        RevResNetOptions(**options)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="rev-resnet halves its input 3 times: 4x4 is below 8x8"):
        build(sample=(3, 4, 4))


def test_options_come_back_from_json():
    options = RevResNetOptions(depth=24)
    assert RevResNetOptions(**options.model_dump(mode="json")) == options
    assert isinstance(build(sample=(2, 16, 16), depth=24).stages[1], Coupling)
