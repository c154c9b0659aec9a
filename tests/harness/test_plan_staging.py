"""Stages of models that nobody cut, and how a model takes its input."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from harness.contracts import StagedModel, reset_states
from harness.errors import UsageError
from harness.plan import adopting
from harness.plan.adopting import adopt, decide
from suites.torchvision_shim import ensure_torchvision
from tests.harness import plan_nets

SAMPLE, T = (1, 8, 8), 4


def adopted(factory, stages=None):
    torch.manual_seed(0)
    decision = decide(factory(), SAMPLE, T, stages)
    torch.manual_seed(0)
    model = factory()
    return adopt(model, decision, stages), decision


def kinds(module):
    return [type(child).__name__ for child in module] if type(module) is nn.Sequential else type(module).__name__


def step_by_step(model, x):
    """What a user's own loop gives in single-step mode."""
    functional.set_step_mode(model, "s")
    out = torch.stack([model(step) for step in x])
    reset_states(model)
    return out


def test_sequences_are_cut_after_every_neuron_and_its_pooling():
    staged, _ = adopted(plan_nets.sequential)
    assert [kinds(stage) for stage in staged.model.stages] == [
        ["Conv2d", "BatchNorm2d", "LIFNode", "MaxPool2d"],
        ["Conv2d", "BatchNorm2d", "LIFNode"],
        ["AvgPool2d", "Flatten", "Linear", "LIFNode"],
    ]
    assert kinds(staged.model.head) == "Linear"
    assert staged.model.normalisation == "over_time"


def test_blocks_are_stages_whatever_loop_calls_them():
    staged, _ = adopted(plan_nets.residual)
    assert [kinds(stage) for stage in staged.model.stages] == [["Conv2d", "BatchNorm2d", "LIFNode"], "Block", "Block"]


@pytest.mark.parametrize(
    "name", ["sequential", "residual", "residual_mean", "plain_layers", "single_step_layers", "one_step", "no_neurons"]
)
def test_the_stages_give_what_the_model_gives(name):
    factory = getattr(plan_nets, name)
    staged, decision = adopted(factory)
    torch.manual_seed(0)
    model = factory()
    x = torch.rand(T, 3, *SAMPLE)
    for mode in (True, False):
        reset_states(staged.model)
        mine = staged.model.train(mode)(x)
        single = name in ("plain_layers", "single_step_layers", "one_step", "no_neurons")
        if single and mode and name == "plain_layers":
            continue  # batch statistics over T x N are not those of one step: it says so, below
        theirs = step_by_step(model.train(mode), x) if single else model.train(mode)(x)
        reset_states(model)
        assert mine.shape[-1] == decision.classes == 10
        torch.testing.assert_close(mine.squeeze(0) if staged.time_mean else mine, theirs)
    if name == "plain_layers":
        assert decision.way == "converted"


def test_the_stages_share_their_weights_with_the_model():
    model = plan_nets.residual()
    staged = adopt(model, decide(plan_nets.residual(), SAMPLE, T))
    assert set(staged.model.parameters()) == set(model.parameters())


def test_what_takes_one_step_runs_step_by_step_and_has_per_step_statistics():
    staged, decision = adopted(plan_nets.one_step)
    assert decision.way == "stepwise"
    assert len(staged.model.stages) == 1
    net = nn.Sequential(plan_nets.one_step(), nn.BatchNorm1d(10))
    assert adopt(net, decide(copy.deepcopy(net), SAMPLE, T)).model.normalisation == "per_step"
    # the online methods' switch to single steps works as well
    x = torch.rand(T, 2, *SAMPLE)
    whole = staged.model(x)
    reset_states(staged.model)
    functional.set_step_mode(staged.model, "s")
    torch.testing.assert_close(torch.stack([staged.model(step) for step in x]), whole)


def test_functions_between_modules_work_in_single_steps_too():
    staged, _ = adopted(plan_nets.residual)
    model, x = staged.model.eval(), torch.rand(T, 2, *SAMPLE)
    whole = model(x)
    reset_states(model)
    functional.set_step_mode(model, "s")
    torch.testing.assert_close(torch.stack([model(step) for step in x]), whole)


def test_what_fx_cannot_see_through_is_one_stage_with_the_reason():
    staged, decision = adopted(plan_nets.by_value)
    assert len(staged.model.stages) == 1
    assert "torch.fx cannot see through" in decision.whole
    assert any("one stage" in note for note in staged.notes)


def test_a_cut_that_changes_the_output_is_refused(monkeypatch):
    real = adopting.stages_of

    def wrong(model, pattern=None):
        stages, head = real(model, pattern)
        return [*stages, _Shift()], head

    monkeypatch.setattr(adopting, "stages_of", wrong)
    assert "output is off by" in decide(plan_nets.residual(), SAMPLE, T).whole


class _Shift(nn.Module):
    def forward(self, x):
        return x + 1


def test_a_pattern_names_the_stages():
    staged, _ = adopted(plan_nets.residual, stages="blocks.*")
    assert [kinds(stage) for stage in staged.model.stages] == [["Conv2d", "BatchNorm2d", "LIFNode", "Block"], "Block"]


def test_a_pattern_without_a_match_names_what_there_is():
    with pytest.raises(UsageError, match=r"--stages 'blokcs\.\*'.*Allowed: stem, stem\.0"):
        decide(plan_nets.residual(), SAMPLE, T, "blokcs.*")


def test_a_model_that_does_not_run_says_what_was_tried():
    with pytest.raises(UsageError, match=r"does not run: on a sequence \(4, 2, 3, 8, 8\).*on one step \(2, 3, 8, 8\)"):
        decide(plan_nets.sequential(), (3, 8, 8), T)


def test_trying_a_model_leaves_no_trace():
    model = plan_nets.sequential()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    decide(model, SAMPLE, T)
    assert torch.equal(torch.rand(3), expected), "the random state moved on"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not isinstance(child.v, torch.Tensor) for child in model.modules() if isinstance(child, neuron.BaseNode))


def test_a_staged_model_keeps_its_stages():
    model = StagedModel([nn.Sequential(layer.Linear(8, 4, step_mode="m"), plan_nets.lif())], nn.Identity(), "none")
    functional.set_step_mode(model, "m")
    decision = decide(model, (8,), T)
    assert adopt(model, decision).model is model


def test_sew_resnet_from_the_library_is_cut_at_its_blocks():
    ensure_torchvision()
    from spikingjelly.activation_based.model import sew_resnet

    net = sew_resnet.sew_resnet18(cnf="ADD", num_classes=7, spiking_neuron=neuron.LIFNode)
    functional.set_step_mode(net, "m")
    decision = decide(net, (3, 32, 32), 2)
    assert decision.whole is None, decision.whole
    stages = adopt(net, decision).model.stages
    assert [type(stage).__name__ for stage in stages[1:]] == ["BasicBlock"] * 8
