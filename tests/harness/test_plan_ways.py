"""How a model takes its input is found, or refused in one line; what runs is the model that the user wrote."""

import pytest
import torch
from click.testing import CliRunner
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn.functional import cross_entropy

import snnbench
from harness import cli, registry
from harness.contracts import Loss
from harness.errors import UsageError
from harness.plan.adopting import adopt, decide
from harness.plan.live import Applied
from harness.plan.staging import has_neuron
from harness.spec import Ref
from tests.harness import plan_nets, user_nets
from tests.harness.user_nets import BufferCell, Cell, Handmade, HandmadeStep, T

N = 3
IMAGE, VECTOR = (1, 8, 8), (8,)
CASES = {
    "an image, repeated inside": (user_nets.Tutorial, IMAGE, "static", lambda model, x: model(x[0])),
    "an image, a loop inside": (user_nets.ImageLoop, IMAGE, "static", lambda model, x: model(x[0])),
    "a loop inside": (user_nets.Loop, VECTOR, "sequence", lambda model, x: model(x)),
    "cells of one's own": (lambda: Handmade(Cell()), VECTOR, "sequence", lambda model, x: model(x)),
    "cells with buffers": (lambda: Handmade(BufferCell()), VECTOR, "sequence", lambda model, x: model(x)),
    "steps of one's own cells": (
        lambda: HandmadeStep(Cell()), VECTOR, "stepwise", lambda model, x: torch.stack([model(step) for step in x]),
    ),
    "a rate for the loss": (user_nets.Monitored, VECTOR, "sequence", lambda model, x: model(x)),
    "one neuron in two places": (user_nets.Twice, VECTOR, "sequence", lambda model, x: model(x)),
    "neurons of one's own": (user_nets.own_neurons, VECTOR, "sequence", lambda model, x: model(x)),
    "a power iteration": (user_nets.Spectral, VECTOR, "sequence", lambda model, x: model(x)),
}  # fmt: skip


def batch(sample, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(T, N, *sample, generator=draw), torch.randint(10, (N,), generator=draw)


def seeded(factory):
    torch.manual_seed(0)
    return factory()


def gradients(model, logits, y):
    """Of the user's own loss."""
    for parameter in model.parameters():
        parameter.grad = None
    logits = logits.flatten(0, -2)
    cross_entropy(logits, y.repeat(len(logits) // N)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def applied(model, factory, sample, method):
    """The model prepared by a method, without a plan; None where the method refuses it."""
    decision = decide(seeded(factory), sample, T)
    staged, rule = adopt(model, decision), registry.create("methods", Ref(name=method))
    loss = Loss("time_mean" if decision.time_mean else "per_step", nn.CrossEntropyLoss())
    if rule.supports(staged.model, loss) is not None:
        return None
    prepared = rule.prepare(staged.model.train(), batch(sample)[0], loss)
    return Applied(rule, prepared, loss, staged.time_mean)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpointed_model_has_the_gradient_of_the_users_own_loop(name):
    factory, sample, way, own = CASES[name]
    assert decide(seeded(factory), sample, T).way == way
    for method in ("bptt", "checkpoint", "torch-checkpoint"):
        plain, model = seeded(factory), seeded(factory)
        prepared = applied(model, factory, sample, method)
        assert (prepared is None) == (factory is user_nets.Twice and method != "bptt")
        for step in range(0 if prepared is None else 2):  # a second batch starts from the first state again
            x, y = batch(sample, step)
            functional.reset_net(plain)
            wanted = gradients(plain, own(plain, x), y)
            assert wanted.norm() > 0
            torch.testing.assert_close(gradients(model, prepared(x), y), wanted, rtol=1e-5, atol=1e-7)


def test_at_a_single_step_a_loop_is_a_loop_and_layers_are_layers():
    model, x = seeded(user_nets.Loop), batch(VECTOR)[0][:1]
    decision = decide(seeded(user_nets.Loop), VECTOR, 1)
    assert decision.fixed
    wanted = model(x)
    functional.reset_net(model)
    torch.testing.assert_close(adopt(model, decision).model(x), wanted)
    assert not decide(plan_nets.single_step_layers(), IMAGE, 1).fixed


@pytest.mark.parametrize(("factory", "steps"), [(user_nets.Tutorial, 6), (user_nets.ImageLoop, 6)])
def test_another_t_than_the_models_own_is_refused(factory, steps):
    with pytest.raises(UsageError, match=f"repeats one frame over {steps} time steps itself, so T is {steps}, not 4"):
        decide(factory(steps), IMAGE, T)


def test_a_model_that_repeats_one_frame_takes_it_in_the_users_own_loop_too():
    model = seeded(user_nets.Tutorial)
    plan = snnbench.plan(model, input=(T, N, *IMAGE), methods=["checkpoint"], limits=True, budget="1GiB")
    prepared, (x, _) = plan.apply(model, "checkpoint"), batch(IMAGE)
    torch.testing.assert_close(prepared(x[0]), prepared(x))
    assert "repeats its input over 4 steps itself" in str(plan.row("checkpoint").notes)
    assert plan.row("checkpoint").batch.value > N


@pytest.mark.parametrize(
    ("factory", "sample", "words"),
    [
        (
            user_nets.BatchFirst,
            VECTOR,
            r"run over 2 steps, not over T=4: it takes \[N, T, ...\]; .*x.transpose\(0, 1\)",
        ),
        (lambda: user_nets.Loop().double(), VECTOR, r"parameters are torch.float64: .*model.float\(\).*--precision"),
        (user_nets.Noisy, VECTOR, "differs from run to run"),
        (lambda: _Pair(), VECTOR, "its output is a tuple, not a tensor: let its forward give the logits alone$"),
        (lambda: _Dense(), IMAGE, "expected are .* of a dense output give a mean over positions$"),
    ],
)
def test_a_model_that_cannot_be_taken_says_why_and_what_to_do(factory, sample, words):
    with pytest.raises(UsageError, match=words):
        decide(factory(), sample, T)


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(x), x


class _Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plan_nets.sequential()[:3]

    def forward(self, x):
        return self.net(x)


def test_states_of_ones_own_are_named_and_keep_the_model_in_one_stage():
    decision = decide(Handmade(Cell()), VECTOR, T)
    assert decision.states == (("cell", "membrane"),)
    assert "it keeps states of its own" in decision.whole
    assert decide(user_nets.Monitored(), VECTOR, T).states == ()


def test_a_model_can_be_planned_for_after_it_ran():
    model, (x, y) = seeded(user_nets.Monitored), batch(VECTOR)
    gradients(model, model(x), y)
    rate = model.rate
    plan = snnbench.plan(model, input=(T, N, *VECTOR), methods=["bptt", "streamed:budget=min"])
    assert model.rate is rate
    assert all(row.cost is not None for row in plan.rows)
    plan.apply(model, "streamed")(x).sum().backward()


def test_what_takes_whole_sequences_only_is_refused_to_methods_of_single_steps():
    plan = snnbench.plan(plan_nets.by_value(), input=(T, N, *IMAGE), methods=["sltt", "streamed:budget=min"])
    assert "has no single-step mode" in plan.row("sltt").reason
    assert "asks for some" in plan.row("streamed").reason


def test_neurons_of_ones_own_end_a_stage():
    staged = adopt(user_nets.own_neurons(), decide(user_nets.own_neurons(), VECTOR, T))
    assert len(staged.model.stages) == 2
    assert all(map(has_neuron, staged.model.stages))


@pytest.mark.parametrize("name", ["an image, a loop inside", "cells with buffers", "a rate for the loss"])
def test_a_trial_leaves_no_trace(name):
    factory, sample, *_ = CASES[name]
    model = seeded(factory)
    tables = [dict(vars(module)) for module in model.modules()]
    values = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    snnbench.plan(model, input=(T, N, *sample), methods=["bptt"])  # the model's copy is tried
    assert torch.equal(torch.get_rng_state(), random)
    for module, table in zip(model.modules(), tables, strict=True):
        assert vars(module).keys() == table.keys()
        assert vars(module).get("_step_mode") == table.get("_step_mode")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_the_command_tells_how_the_model_was_taken_and_plans_for_its_loss():
    words = ["plan", "--model", "tests.harness.user_nets:Tutorial", "--input", "1,8,8", "--classes", "10", "-T", "4"]
    said = CliRunner().invoke(cli.snnbench, [*words, "--batch", "3", "--budget", "1GiB", "--methods", "bptt,sltt"])
    assert said.exit_code == 0, said.output
    assert "it repeats its input over T=4 itself" in said.output
    assert "left out: sltt: needs a per_step loss" in said.output
