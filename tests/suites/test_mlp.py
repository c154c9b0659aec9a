import pytest
import torch
from pydantic import ValidationError
from spikingjelly.activation_based import base, layer
from torch import nn

from suites.models.mlp import MLP, MLPOptions
from suites.models.norm import SPIKE_SCALE, PerStepBatchNorm1d
from tests.suites.nets import logits, single_steps

NORMS = ["over_time", "per_step", "weight_standardised", "none"]


def build(sample=(6,), classes=5, **given):
    torch.manual_seed(0)
    return MLP(MLPOptions(**({"hidden": (8, 7)} | given))).build(sample, classes)


def sequence(steps=4, batch=3, sample=(6,)):
    return 3 * torch.rand(steps, batch, *sample, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sample", [(6,), (2, 1, 3)])
def test_logits_have_all_time_steps(norm, sample):
    model = build(sample, norm=norm)
    assert model.normalisation == norm
    assert logits(model, sequence(sample=sample)).shape == (4, 3, 5)
    assert all(m.step_mode == "m" for m in model.modules() if isinstance(m, base.StepModule))


@pytest.mark.parametrize("norm", ["per_step", "weight_standardised", "none"])
@pytest.mark.parametrize("sample", [(6,), (2, 1, 3)])
def test_a_multi_step_pass_is_a_loop_of_single_steps(norm, sample):
    x = sequence(sample=sample)
    whole, loop = (build(sample, norm=norm, dropout=0.0) for _ in range(2))
    assert torch.allclose(logits(whole, x), single_steps(loop, x), atol=1e-6)
    for (name, a), b in zip(whole.state_dict().items(), loop.state_dict().values(), strict=True):
        assert torch.allclose(a, b), name


@pytest.mark.parametrize(
    ("norm", "linear", "bias", "after", "scaled"),
    [
        ("over_time", layer.Linear, False, layer.BatchNorm1d, False),
        ("per_step", layer.Linear, False, PerStepBatchNorm1d, False),
        ("none", layer.Linear, True, nn.Identity, False),
        ("weight_standardised", layer.WSLinear, True, nn.Identity, True),
    ],
)
def test_a_stage_is_linear_norm_neuron(norm, linear, bias, after, scaled):
    model = build(norm=norm, tau=30.0)
    assert len(model.stages) == 2
    for stage, (inputs, outputs) in zip(model.stages, [(6, 8), (8, 7)], strict=True):
        assert (type(stage[0]), type(stage[1])) == (linear, after)
        assert (stage[0].in_features, stage[0].out_features, stage[0].bias is not None) == (inputs, outputs, bias)
        assert stage[2].tau == 30.0
        assert [m.factor for m in stage[3:]] == ([SPIKE_SCALE] if scaled else [])


def test_an_image_is_flattened_as_torch_does():
    x = sequence(sample=(2, 1, 3))
    image, vector = build((2, 1, 3)), build()
    assert type(image.stages[0][0]) is layer.Flatten
    assert torch.equal(logits(image, x), logits(vector, x.flatten(2)))


def test_nothing_but_the_membrane_passes_from_step_to_step():
    model = build(norm="none", tau=50.0, decay_input=False)
    memories = [m for m in model.modules() if isinstance(m, base.MemoryModule)]
    assert len(memories) == 2
    assert all(type(m).__name__ == "LIFNode" for m in memories)
    x = sequence(steps=6)
    other = x.clone()
    other[0] += 1
    # A neuron with a long time constant still feels the first step at the last; one that forgets does not.
    assert not torch.equal(logits(model, x)[-1], logits(model, other)[-1])
    for node in memories:
        node.tau = 1.0
    assert torch.equal(logits(model, x)[-1], logits(model, other)[-1])


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_gets_a_gradient(norm):
    model = build(norm=norm, v_threshold=0.2)
    logits(model, sequence(batch=8)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_per_step_norm_takes_the_statistics_of_each_step():
    x = torch.randn(3, 5, 4) * torch.arange(1, 4).view(3, 1, 1)
    norm, loop = PerStepBatchNorm1d(4, step_mode="m"), nn.BatchNorm1d(4)
    assert torch.equal(norm(x), torch.stack([loop(step) for step in x]))
    assert torch.equal(norm.running_var, loop.running_var)
    assert int(norm.num_batches_tracked) == 3
    with pytest.raises(ValueError, match=r"\[T, N, C\] or \[T, N, C, L\], but got \(5, 4\)"):
        norm(x[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [({"hidden": ()}, "at least 1"), ({"hidden": (8, 0)}, "greater than 0"), ({"width": 3}, "Extra inputs")],
)
def test_wrong_options_give_one_clear_error(given, message):
    with pytest.raises(ValidationError, match=message) as caught:
        MLPOptions(**given)
    assert caught.value.error_count() == 1
