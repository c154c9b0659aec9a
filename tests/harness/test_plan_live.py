"""The planner on models in memory: what it predicts is what runs, and what it applies trains as BPTT does."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import snnbench
from harness import registry
from harness.build import make_optimizer, reset_states
from harness.contracts import Loss, Unsupported
from harness.errors import UsageError
from harness.ledger import Ledger
from tests.harness import plan_nets

DOCS = Path(__file__).parents[2] / "docs" / "plan.md"
INPUT = (4, 3, 1, 8, 8)
EXACT = [
    "bptt",
    "bptt-fused",
    "checkpoint",
    "checkpoint-compress",
    "offload",
    "sj-memopt",
    "streamed",
    "torch-checkpoint",
]


def batch():
    draw = torch.Generator().manual_seed(3)
    return torch.rand(INPUT, generator=draw), torch.randint(10, INPUT[1:2], generator=draw)


def seeded(factory):
    torch.manual_seed(0)
    return factory()


@pytest.fixture(scope="module", params=["sequential", "residual_mean"])
def planned(request):
    factory = getattr(plan_nets, request.param)
    return factory, snnbench.plan(seeded(factory), input=INPUT, budget="1GiB", methods=EXACT)


def backward(factory, forward):
    """The loss of a user's own loop; gradients are accumulated."""
    x, y = batch()
    target = y if factory is plan_nets.residual_mean else y.repeat(INPUT[0])
    loss = cross_entropy(forward(x).flatten(0, -2), target)
    loss.backward()
    return loss


@pytest.mark.parametrize("way", EXACT)
def test_an_applied_method_gives_bptts_gradient_to_ones_own_loop(planned, way):
    factory, plan = planned
    model, plain = seeded(factory), seeded(factory)
    wanted = backward(factory, plain)
    loss = backward(factory, plan.apply(model, way))
    torch.testing.assert_close(loss, wanted)
    assert distance(model, plain) <= 1e-5
    for name, value in plain.state_dict().items():  # running statistics were updated once
        torch.testing.assert_close(model.state_dict()[name], value)


def distance(model, plain):
    ours = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    theirs = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()])
    return float((ours - theirs).norm() / theirs.norm())


def test_the_three_lines_of_the_documentation():
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    x, y = batch()
    model, plain = seeded(plan_nets.residual), seeded(plan_nets.residual)
    names = {"net": model, "x": x, "y": y, "cross_entropy": cross_entropy}
    exec(code, names)
    cross_entropy(plain(x).mean(0), y).backward()
    assert distance(model, plain) <= 1e-5


def test_training_in_ones_own_loop_is_bptts_training():
    x, y = batch()
    weights = {}
    for method in ("bptt", "checkpoint-compress"):
        model = seeded(plan_nets.residual)
        prepared = snnbench.plan(model, input=INPUT, methods=[method]).apply(model, method)
        optimizer = torch.optim.SGD(prepared.parameters(), 0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(prepared(x).mean(0), y).backward()
            optimizer.step()
        evaluated = prepared.eval()(x)
        reset_states(model)
        assert torch.equal(evaluated, model.eval()(x))
        weights[method] = model.state_dict()
    for name, value in weights["bptt"].items():
        torch.testing.assert_close(weights["checkpoint-compress"][name], value)


@pytest.mark.parametrize("way", ["sltt", "rate", "micro-batch"])
def test_a_rule_of_its_own_is_refused_with_the_way_out_and_steps(way):
    x, y = batch()
    model = nn.Sequential(*list(seeded(plan_nets.sequential))[5:])  # no batch normalisation
    model[1] = type(model[1])(64, 16, step_mode="m")
    plan = snnbench.plan(model, input=INPUT, methods=[way])
    prepared = plan.apply(model, way)
    with pytest.raises(Unsupported, match=r"call \.step\(x, y, optimizer, criterion\)"):
        prepared(x)
    head = model[-1]
    before = head.bias.clone()  # its gradient is not zero even where nothing fires
    out = prepared.step(x, y, torch.optim.SGD(prepared.parameters(), 0.1), cross_entropy)
    assert out.logits.shape == (3, 10)
    assert not torch.equal(head.bias, before)
    assert isinstance(prepared.finish(), nn.Module)


@pytest.mark.parametrize(("way", "optimizer"), [("bptt", "adam"), ("rate", "sgd"), ("streamed", "adam")])
def test_the_predicted_peak_is_that_of_the_real_step(way, optimizer):
    model = seeded(plan_nets.residual)
    plan = snnbench.plan(model, input=INPUT, methods=[way], optimizer=optimizer)
    row = plan.row(way)
    prepared = plan.apply(model, row.label)
    x, y = batch()
    real, loss = registry.create("methods", row.method), Loss("per_step", nn.CrossEntropyLoss())
    trainable = real.prepare(prepared.prepared.train(), x, loss)
    used = make_optimizer(plan.spec.recipe, trainable, "cpu")

    def update():
        used.step()
        used.zero_grad(set_to_none=True)

    for tracked in (False, True):
        reset_states(trainable)
        ledger = Ledger(trainable)
        ledger.register("inputs", [x, y])
        ledger.register_optimizer(used)
        if tracked:
            with ledger:
                real.step(trainable, x, y, loss, update)
        else:
            real.step(trainable, x, y, loss, update)
    assert ledger.report().peak_bytes == row.cost.peak_bytes


def test_planning_changes_nothing():
    model = seeded(plan_nets.plain_layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    snnbench.plan(model, input=INPUT, methods=["bptt", "checkpoint"])
    assert [type(module) for module in model.modules()] == kinds
    assert model[2].step_mode == "s"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_traced_is_measured_small_and_says_so():
    plan = snnbench.plan(plan_nets.by_value(), input=(4, 8, 1, 8, 8), methods=["bptt"], limits=True, budget="1GiB")
    row = plan.row("bptt")
    assert "cannot run under fake tensors (it depends on values)" in row.reason
    assert "measured on the CPU at T=2,4 N=1,2" in str(plan)

    class SameWithoutTheTest(plan_nets.ByValue):
        def forward(self, x):
            return self.fc(self.lif(self.conv(x)).flatten(2))

    predicted = snnbench.plan(SameWithoutTheTest(), input=(4, 8, 1, 8, 8), methods=["bptt"]).row("bptt").cost
    assert row.cost.peak_bytes == pytest.approx(predicted.peak_bytes, rel=0.05)
    assert row.batch.value > 8


def test_limits_are_the_edge():
    model = plan_nets.sequential()
    plan = snnbench.plan(model, input=(4, 8, 1, 8, 8), methods=["bptt"], budget="2MiB", reserve="0B", limits=True)
    largest = plan.row("bptt").batch
    assert largest.verified

    def peak(n):
        return snnbench.plan(model, input=(4, n, 1, 8, 8), methods=["bptt"]).row("bptt").cost.peak_bytes

    assert peak(largest.value) <= 2 * 2**20 < peak(largest.value + 1)


def test_nothing_fits_and_it_says_what_would():
    plan = snnbench.plan(plan_nets.residual(), input=(4, 64, 1, 8, 8), budget="1MiB", reserve="0B",
                         methods=["bptt", "checkpoint"], limits=True)  # fmt: skip
    assert plan.recommended is None
    assert plan.why.startswith("recommended: none at N=64; checkpoint needs")
    with pytest.raises(ValueError, match="recommended: none"):
        plan.apply(plan_nets.residual())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": (4, 2)}, "whole numbers"),
        ({"input": (4, 0, 1, 8, 8)}, "whole numbers"),
        ({"budget": "8 GiBs"}, "GiB"),
        ({"budget": "1GiB", "reserve": "2GiB"}, "nothing is left"),
        ({"methods": ["bptq"]}, "Did you mean 'bptt'"),
        ({"methods": ["streamed:budgit=min"]}, "budget"),
        ({"optimizer": "lion"}, "adam"),
        ({"precision": "fp8"}, "fp32"),
    ],
)
def test_mistakes_name_what_is_allowed(fields, words):
    with pytest.raises(UsageError, match=words):
        snnbench.plan(plan_nets.sequential(), **({"input": INPUT, "methods": ["bptt"]} | fields))
