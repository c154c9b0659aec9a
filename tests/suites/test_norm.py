import pytest
import torch
from torch import nn

from suites.models.norm import NormOptions, PerStepBatchNorm2d, make_norm

T, N, C = 3, 4, 5


@pytest.fixture
def x():
    torch.manual_seed(0)
    # Other statistics at each step, so that mixing steps shows.
    return torch.randn(T, N, C, 2, 2) * torch.arange(1, T + 1).view(T, 1, 1, 1, 1) + torch.arange(C).view(C, 1, 1)


def test_per_step_is_a_loop_of_single_steps_with_its_gradient_and_running_statistics(x):
    whole, loop = make_norm(C, "per_step"), nn.BatchNorm2d(C)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = whole(a), torch.stack([loop(step) for step in b])
    assert torch.equal(out, expected)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(whole.weight.grad, loop.weight.grad)
    for name, value in loop.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value), name
    assert int(whole.num_batches_tracked) == T


def test_over_time_takes_its_statistics_over_all_steps(x):
    norm, flat = make_norm(C, "over_time"), nn.BatchNorm2d(C)
    assert torch.equal(norm(x), flat(x.flatten(0, 1)).view_as(x))
    assert torch.equal(norm.running_mean, flat.running_mean)
    assert int(norm.num_batches_tracked) == 1


def test_the_modes_differ(x):
    assert not torch.allclose(make_norm(C, "over_time")(x), make_norm(C, "per_step")(x), atol=1e-2)


def test_in_evaluation_the_modes_agree(x):
    over, per = make_norm(C, "over_time"), make_norm(C, "per_step")
    over(x)
    per.load_state_dict(over.state_dict())
    assert torch.allclose(over.eval()(x), per.eval()(x), atol=1e-6)


def test_none_is_the_identity_and_has_no_state(x):
    norm = make_norm(C, "none")
    assert norm(x) is x
    assert not norm.state_dict()


def test_single_step_mode_takes_one_step(x):
    norm = make_norm(C, "per_step")
    norm.step_mode = "s"
    assert torch.equal(norm(x[0]), nn.BatchNorm2d(C)(x[0]))


def test_an_input_without_time_is_refused_in_multi_step_mode(x):
    with pytest.raises(ValueError, match=r"\[T, N, C, H, W\], but got \(4, 5, 2, 2\)"):
        PerStepBatchNorm2d(C, step_mode="m")(x[0])


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="over_time"):
        NormOptions(norm="batch")
