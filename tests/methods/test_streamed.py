"""Streamed layers against BPTT: gradients in every mode, what is opaque, widths, memory, replays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel, Unsupported
from harness.predict import convert
from methods.bptt import BPTT
from methods.bptt_fused import SURROGATES
from methods.streamed import Streamed, StreamedOptions
from methods.streaming.costs import modes_of
from methods.streaming.norm import classify
from methods.streaming.parse import parse
from methods.streaming.unit import Mode
from tests.methods.nets import (
    AddBlock,
    Scale,
    batch,
    build,
    conv,
    difference,
    integrate,
    lif,
    no_norm,
    over_time,
    per_step,
    plif,
    prepared,
    run,
)
from tests.methods.test_memory import track

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class SEW(nn.Module):
    """A spike-element-wise block with a down-sampling shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels, lif(), over_time), conv(channels, channels, lif(), over_time)
        )
        weight = layer.Conv2d(channels, channels, 1, bias=False, step_mode="m")
        self.shortcut = nn.Sequential(weight, over_time(channels), lif()())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Membranes(nn.Module):
    """A block of MS-ResNet: neurons come first, branches end with a normalisation, what is added are currents.

    Args:
        channels: of its input.
        norm: makes the normalisation.
        frozen: the shortcut's normalisation takes its running statistics.
    """

    def __init__(self, channels: int, norm: Any = over_time, frozen: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(lif()(), _branch(channels, norm), lif()(), _branch(channels, norm))
        self.shortcut = frozen_norm(channels)[:2] if frozen else _branch(channels, norm)
        self.pool = layer.AvgPool2d(3, 1, 1, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        currents = self.shortcut(x)
        return self.pool(self.body(currents)) + currents


def _branch(channels: int, norm: Any) -> nn.Sequential:
    return nn.Sequential(layer.Conv2d(channels, channels, 3, padding=1, step_mode="m"), norm(channels))


def grouped(channels: int) -> nn.Sequential:
    weight = layer.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2, bias=True, step_mode="m")
    return nn.Sequential(weight, over_time(channels), lif()())


def ann(channels: int) -> nn.Sequential:
    """Convolution, normalisation and pooling in a container, as SpikingJelly's transformers have them."""
    inside = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.MaxPool2d(3, 1, 1)
    return nn.Sequential(layer.SeqToANNContainer(*inside), lif()())


def linear(channels: int) -> nn.Sequential:
    flat = layer.Flatten(step_mode="m"), layer.Linear(64 * channels, 64 * channels, step_mode="m")
    return nn.Sequential(
        *flat, layer.BatchNorm1d(64 * channels, step_mode="m"), lif()(), nn.Unflatten(2, (channels, 8, 8))
    )


def frozen_norm(channels: int) -> nn.Module:
    stage = conv(channels, channels, lif(), over_time)
    stage[1].train = lambda mode=True: stage[1]  # type: ignore[method-assign]
    stage[1].training = False
    stage[1].running_var.fill_(0.3)
    return stage


NETS: dict[str, Any] = {
    "lif": lambda: build(lif()),
    "lif-soft": lambda: build(lif(v_reset=None)),
    "lif-detached": lambda: build(lif(detach_reset=True, v_reset=-0.2)),
    "lif-soft-detached": lambda: build(lif(v_reset=None, detach_reset=True, decay_input=False)),
    "if": lambda: build(integrate()),
    "plif": lambda: build(plif()),
    "plif-soft": lambda: build(plif(v_reset=None, detach_reset=True, decay_input=False)),
    "per-step": lambda: build(lif(), per_step),
    "no-norm": lambda: build(lif(), no_norm),
    "average-pool": lambda: build(middle=lambda c: layer.AvgPool2d(3, stride=1, padding=1, step_mode="m")),
    "dropout": lambda: build(middle=lambda c: conv(c, c, lif(), over_time, layer.Dropout(0.4, step_mode="m"))),
    "blocks": lambda: build(
        middle=lambda c: nn.Sequential(AddBlock(c, lif(), over_time), AddBlock(c, lif(), per_step))
    ),
    "sew": lambda: build(middle=lambda c: nn.Sequential(SEW(c), SEW(c))),
    "membranes": lambda: build(middle=lambda c: nn.Sequential(Membranes(c), Membranes(c))),
    "membranes-per-step": lambda: build(middle=lambda c: Membranes(c, per_step)),
    "membranes-frozen": lambda: build(middle=lambda c: nn.Sequential(Membranes(c, frozen=True), lif()())),
    "grouped": lambda: build(middle=grouped),
    "container": lambda: build(middle=ann),
    "linear": lambda: build(middle=linear),
    "frozen-norm": lambda: build(middle=frozen_norm),
    "fractions": lambda: build(middle=lambda c: Scale(0.3)),
    "view": lambda: build(middle=lambda c: nn.Identity()),
}
MODES = {
    "once": Mode(2, "x", 1, "once"),
    "twice": Mode(2, "x", 3, "twice"),
    "all": Mode(3, "x", 1, "all"),
    "output": Mode(2, "y", 1, "twice"),
    "output-all": Mode(3, "y", 1, "all"),
    "membrane": Mode(2, "u"),
}


def streamed(budget: str = "min") -> Streamed:
    return Streamed(StreamedOptions(budget=budget))


def forced(model: StagedModel, mode: Mode) -> Streamed:
    """All layers in one mode, without planning."""
    method, program = streamed(), parse(model)
    plan = streamed().plan() | {"width_source": "rule"}
    from dataclasses import asdict

    from methods.streaming.plan import rule_widths

    plan["layers"] = [{"name": s.name, "kind": s.kind, "mode": asdict(mode)} for s in program.steps]
    method.replay(plan | {"widths": [0 if w is None else w for w in rule_widths(program)]})
    return method


def compare(net: Any, dtype: torch.dtype, make: Any) -> float:
    x, y = batch(dtype=dtype)
    reference, model = net().to(dtype), net().to(dtype)
    expected = run(BPTT(), reference.train(), x, y)
    method = make(model.train())
    got = run(method, prepared(method, model, x), x, y)
    assert got.updates == 1
    assert torch.allclose(got.out.loss, expected.out.loss, rtol=1e-6, atol=0)
    assert got.buffers.keys() == expected.buffers.keys()
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    assert all(torch.allclose(got.buffers[k].double(), v.double(), rtol=tight) for k, v in expected.buffers.items())
    assert all(g.dtype == dtype for g in got.gradients.values())
    return difference(got.gradients, expected.gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_gradient_is_that_of_bptt_in_every_mode(net, mode):
    assert compare(NETS[net], torch.float64, lambda model: forced(model, MODES[mode])) <= 1e-10


@pytest.mark.parametrize("net", ["lif", "plif", "sew", "per-step", "container", "no-norm", "membranes"])
@pytest.mark.parametrize("mode", ["twice", "all"])
def test_float32(net, mode):
    assert compare(NETS[net], torch.float32, lambda model: forced(model, MODES[mode])) <= 1e-5


@pytest.mark.parametrize("kind", SURROGATES)
def test_every_surrogate(kind):
    node = lif(surrogate_function=kind(alpha=1.3))
    net = lambda: build(node)  # noqa: E731
    assert compare(net, torch.float64, lambda model: forced(model, MODES["twice"])) <= 1e-10


@pytest.mark.parametrize("net", ["lif", "sew", "plif", "membranes"])
def test_planned_for_the_smallest_budget(net):
    assert compare(NETS[net], torch.float64, lambda model: streamed()) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("net", ["plif", "membranes"])
def test_autocast(dtype, net):
    x, y = batch()
    steps = []
    for kind in (BPTT(), streamed()):
        model = prepared(kind, NETS[net](), x)
        with torch.autocast("cpu", dtype=dtype):
            steps.append(run(kind, model, x, y))
    assert torch.allclose(steps[1].out.logits.float(), steps[0].out.logits.float(), atol=5e-2)
    assert difference(steps[1].gradients, steps[0].gradients) <= 5e-2
    assert all(g.dtype == torch.float32 for g in steps[1].gradients.values())


def test_frozen_stages_and_the_inputs_gradient():
    x, y = batch(dtype=torch.float64)
    found = []
    for make in (lambda m: BPTT(), lambda m: forced(m, MODES["twice"])):
        model = build().double().train()
        model.stages[0].requires_grad_(False)
        model.stages[3][1].requires_grad_(False)
        mine = x.clone().requires_grad_()
        method = make(model)
        found.append((run(method, prepared(method, model, x), mine, y).gradients, mine.grad))
    assert difference(found[1][0], found[0][0]) <= 1e-10
    assert torch.allclose(found[1][1], found[0][1], rtol=1e-9, atol=1e-14)


def test_layers_blocks_and_opaque_pieces_are_told_apart():
    x, _ = batch()
    nodes = [neuron.QIFNode(step_mode="m"), layer.Dropout(0.3, step_mode="m")]
    model = build(middle=lambda c: nn.Sequential(SEW(c), conv(c, c, lif(), over_time), *nodes))
    method = streamed()
    prepared(method, model, x)
    plan = method.plan()
    assert [entry["kind"] for entry in plan["layers"]] == ["unit"] * 4 + ["add", "unit", "call", "call", "unit"]
    assert "QIFNode is not LIFNode" in plan["fallback"]["stages.1.2"]
    assert list(plan["fallback"]) == ["stages.1.2", "stages.1.3"]
    assert json.loads(json.dumps(plan)) == plan


def test_a_normalisation_without_a_neuron_behind_it_ends_a_layer():
    program = parse(build(middle=Membranes))
    assert [step.kind for step in program.steps] == ["unit"] * 5 + ["call", "add", "unit"]
    assert [step.unit.node is None for step in program.steps if step.unit is not None] == [
        False, True, False, False, True, False,
    ]  # fmt: skip


def test_a_neuron_that_runs_twice_makes_its_stage_opaque():
    class Twice(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight, self.node = layer.Conv2d(channels, channels, 1, step_mode="m"), lif()()

        def forward(self, x: Tensor) -> Tensor:
            return self.node(self.weight(self.node(self.weight(x))))

    assert compare(lambda: build(middle=Twice), torch.float64, lambda model: streamed()) <= 1e-10
    assert [step.kind for step in parse(build(middle=Twice)).steps] == ["unit", "call", "unit"]


def test_a_forward_that_reads_values_is_opaque():
    class Reads(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.inner = conv(channels, channels, lif(), over_time)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.dim() == 5 and bool(x.shape[0] > 1) else x

    steps = parse(build(middle=Reads)).steps
    assert [step.kind for step in steps] == ["unit", "call", "unit"]


def test_norms_are_told_apart_by_what_they_compute():
    class Odd(layer.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.01

    assert classify(over_time(4), True) is False
    assert classify(per_step(4), True) is True
    assert classify(nn.BatchNorm2d(4), False) is False
    assert classify(Odd(4, step_mode="m"), True) is None
    assert classify(layer.BatchNorm2d(4, step_mode="s"), True) is None


def test_values_that_no_rule_knows_are_measured_and_widened():
    class Steps(nn.Module):
        """Integers that grow with the parameter, which changes between steps."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    x, y = batch(dtype=torch.float64)
    gradients = []
    method = streamed()
    for kind in (BPTT(), method):
        model = prepared(kind, build(middle=lambda c: Steps()).double(), x)
        run(kind, model, x, y)
        model.stages[1].factor.fill_(3)
        gradients.append(run(kind, model, x, y))
    assert difference(gradients[1].gradients, gradients[0].gradients) <= 1e-10
    assert all(torch.allclose(gradients[1].buffers[n], b, rtol=1e-12) for n, b in gradients[0].buffers.items())
    plan = method.plan()
    assert (plan["redone_steps"], plan["width_source"]) == (1, "measured")


@pytest.mark.parametrize("net", ["lif", "sew", "membranes", "dropout", "container", "no-norm"])
@pytest.mark.parametrize("budget", ["min", "0.7x"])
def test_fake_tensors_cost_the_same_bytes(net, budget):
    x, y = batch(4, 8)
    real = streamed(budget)
    ours = track(real, NETS[net](), x, y)
    with FakeTensorMode() as mode:
        method = streamed(budget)
        fake = track(method, convert(NETS[net](), mode), mode.from_tensor(x), mode.from_tensor(y))
    if net != "dropout":
        assert method.plan()["layers"] == real.plan()["layers"]
        assert (fake.peak_bytes, fake.saved_bytes) == (ours.peak_bytes, ours.saved_bytes)
        assert ours.peak_bytes == real.plan()["predicted_peak_bytes"]


def test_replay_takes_a_real_runs_plan():
    x, y = batch(dtype=torch.float64)
    real = streamed()
    expected = run(real, prepared(real, build().double(), x), x, y)
    method = streamed()
    method.replay(json.loads(json.dumps(real.plan())))
    got = run(method, prepared(method, build().double(), x), x, y)
    assert difference(got.gradients, expected.gradients) == 0
    assert method.plan()["layers"] == real.plan()["layers"]
    other = streamed()
    other.replay(real.plan())
    with pytest.raises(ValueError, match="it belongs to another model"):
        prepared(other, build(middle=SEW), x)


def test_budgets_are_read_and_refused():
    x, _ = batch()
    for wrong in ("half", "50%", 0.5, "0x", "-1GiB", "", None, True):
        with pytest.raises(ValueError, match="give 'min', a part of BPTT's peak"):
            StreamedOptions(budget=wrong)
    assert [StreamedOptions(budget=right).budget for right in (" MIN", 4096, "0.5X", "8 GiB")] == [
        "min", "4096", "0.5X", "8 GiB",
    ]  # fmt: skip
    method = streamed("10kB")
    with pytest.raises(Unsupported, match="below the smallest peak of this model"):
        method.prepare(build().train(), x, run.__globals__["loss"]())


def test_second_backward_is_refused():
    from methods.streaming.plan import rule_widths
    from methods.streaming.run import Kept, Plan
    from methods.streaming.run import run as forward

    model, (x, _) = build().train(), batch()
    program = parse(model)
    widths = [0 if w is None else w for w in rule_widths(program)]
    kept = Kept(widths, torch.zeros(len(widths), dtype=torch.int64), {})
    out = forward(Plan(program, [Mode(2)] * len(program.steps)), x, kept, None).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward through streamed stages"):
        out.backward()


def test_modes_of_a_small_batch():
    steps = parse(build()).steps
    assert {mode.chunks for mode in modes_of(steps[0], 6)} == {4, 6}
    assert {mode.chunks for mode in modes_of(steps[0], 1)} == {1}
    assert modes_of(steps[2], 6) == [Mode()]
