"""Cuts inside residual and transformer stages: exact, lower, predicted to the byte; what is no graph stays one piece."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel
from harness.ledger import BLOCK
from harness.predict import convert
from methods import _plan, compressors
from methods._layout import Segment, programs, value_bounds, whole
from methods._plan import _Search
from methods._program import Program
from methods.bptt import BPTT
from methods.checkpoint_compress import CheckpointCompress
from suites.models.transformers import QKFormer, QKFormerOptions, Spikformer, SpikformerOptions
from tests.methods.nets import AddBlock, batch, build, conv, difference, lif, over_time, prepared, run
from tests.methods.test_exactness import compare
from tests.methods.test_levels import MORE, Fixed, apart, at, finest, mixed, sew, track


def fine(model: StagedModel) -> list[Segment]:
    """Residual stages cut wherever weights, sums or products follow on values that can be packed."""
    known, found = programs(model.stages), []
    for index, (program, bounds) in enumerate(zip(known, value_bounds(model.stages, known), strict=True)):
        cuts = program.cuts(bounds)
        found += [Segment(index, a, b) for a, b in zip([0, *cuts], [*cuts, len(program.steps)], strict=True)]
    return found


def spikformer() -> StagedModel:
    torch.manual_seed(0)
    opt = SpikformerOptions(depth=1, width=16, heads=2, patch=4, attention_threshold=0.1, v_threshold=0.3)
    return Spikformer(opt).build((2, 8, 8), 3)


def qkformer() -> StagedModel:
    torch.manual_seed(0)
    opt = QKFormerOptions(depths=(1, 1, 1), width=16, heads=(2, 2, 2), attention_threshold=0.1, v_threshold=0.3)
    return QKFormer(opt).build((2, 16, 16), 3)


class Tail(nn.Module):
    """A block whose output is a product with a number that it holds, and that reads a shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = conv(channels, 6, lif(), over_time), conv(6, channels, lif(), over_time)
        self.factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        steps, samples, *_ = x.shape
        inner = self.one(x)
        return self.two(inner).reshape(steps, samples, *x.shape[2:]) * self.factor + x


NETS: dict[str, Any] = {
    **{name: MORE[name] for name in ("sew", "sew-shortcut", "sew-iand")},
    "own-block": lambda: build(middle=Tail),
    "spikformer": spikformer,
    "qkformer": qkformer,
}


def images(net: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A batch for a net."""
    x, y = batch(dtype=dtype)
    return (x.repeat(1, 1, 1, 2, 2) if net == "qkformer" else x), y


@pytest.mark.parametrize("layout", [finest, fine, apart, mixed])
@pytest.mark.parametrize("net", NETS)
def test_the_gradient_is_that_of_bptt_in_every_layout(net, layout):
    x, y = images(net, torch.float64)
    results = []
    for kind in (BPTT, lambda: Fixed(layout)):
        model, method = NETS[net]().double(), kind()
        prepared(method, model, x)
        results.append([run(method, model, x, y, seed=seed) for seed in (1, 2)])
    for expected, got in zip(*results, strict=True):
        assert difference(got.gradients, expected.gradients) <= 1e-10
        assert torch.equal(got.out.logits, expected.out.logits)
        assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    assert any(bool(g.count_nonzero()) for g in results[0][0].gradients.values())


@pytest.mark.parametrize("net", ["sew-shortcut", pytest.param("qkformer", marks=pytest.mark.slow)])
def test_o4_is_exact_and_its_peak_is_the_plans(net):
    x, y = images(net)
    method = at("O4")()
    report = track(method, NETS[net](), x, y)
    planned, segments = method.plan()["predicted_peak_bytes"], method.plan()["segments"]
    assert abs(planned - report.peak_bytes) <= 4 * BLOCK
    assert len(segments) > len(NETS[net]().stages)
    double, _ = images(net, torch.float64)
    results = [run(m := kind(), prepared(m, NETS[net]().double(), double), double, y) for kind in (BPTT, at("O4"))]
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10


@pytest.mark.parametrize("net", ["sew", "sew-shortcut"])
def test_cut_blocks_have_a_lower_peak_than_whole_ones(net):
    x, y = images(net)
    x, y = x.repeat(1, 4, 1, 1, 1), y.repeat(4)
    one = track(Fixed(lambda model: whole(programs(model.stages))), NETS[net](), x, y).peak_bytes
    cut = track(Fixed(fine), NETS[net](), x, y).peak_bytes
    assert cut < one


@pytest.mark.parametrize(("net", "layout"), [("sew-shortcut", finest), ("spikformer", fine), ("qkformer", mixed)])
def test_a_replayed_plan_costs_the_same_bytes(net, layout):
    x, y = images(net)
    method = Fixed(layout)
    real = track(method, NETS[net](), x, y)
    plan = json.loads(json.dumps(method.plan()))
    model = NETS[net]()
    with FakeTensorMode() as mode:
        replayed = CheckpointCompress()
        replayed.replay(plan)
        fake = track(replayed, convert(model, mode), mode.from_tensor(x), mode.from_tensor(y))
    assert (fake.peak_bytes, fake.saved_bytes, fake.split) == (real.peak_bytes, real.saved_bytes, real.split)


def test_what_several_parts_read_is_kept_once(monkeypatch):
    """Branch and shortcut of a SEW block read its input; the sum at its end keeps nothing."""
    widths: list[int] = []
    original = compressors.pack
    monkeypatch.setattr(compressors, "pack", lambda x, width, bad: widths.append(width) or original(x, width, bad))
    x, y = batch()
    method = Fixed(fine)
    model = prepared(method, build(middle=lambda c: nn.Sequential(sew(c, c))), x)
    assert [s["stop"] - s["start"] for s in method.plan()["segments"] if s["stage"] == 1] == [3, 3, 3, 1]
    run(method, model, x, y)
    # Input; the block's input, its first branch; and what pooling, the stage after it and nobody else read.
    assert Counter(widths) == {0: 1, 1: 2, 2: 2}


@pytest.mark.parametrize("level", ["O2", pytest.param("O4", marks=pytest.mark.slow)])
def test_a_search_that_may_cut_blocks_finds_a_lower_peak(monkeypatch, level):
    x, _ = batch(N=6)
    peaks = []
    for _ in range(2):
        _plan._PLANS.clear()
        method = at(level)()
        prepared(method, NETS["sew-shortcut"](), x)
        peaks.append(method.plan()["predicted_peak_bytes"])
        monkeypatch.setattr(_Search, "_fine", lambda self, layout: layout)
    _plan._PLANS.clear()
    assert peaks[0] < 0.9 * peaks[1]


def steps_of(block: nn.Module) -> int:
    return len(Program(block).steps)


def test_the_steps_of_known_blocks():
    assert steps_of(sew(4)) == 7
    assert steps_of(sew(4, 6)) == 10
    program = Program(sew(4))
    bounds, _ = program.bounds(1.0, data=False)
    assert program.cuts(bounds) == [3, 6]
    assert bounds[program.nodes[-1].out] == 2.0
    product = Program(sew(4, cnf="IAND"))
    assert product.bounds(1.0, data=False)[0][product.nodes[-1].out] == 1.0
    assert all(not program.is_chain for program in programs(spikformer().stages)[4:])


class Block(AddBlock):
    """A residual block with one thing that makes it no graph."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, lif(), over_time)
        self.kind = kind
        if kind == "parameter":
            self.gain = nn.Parameter(torch.ones(()))
        if kind == "inplace module":
            self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.node(self.norm(self.conv(x)))
        if self.kind == "parameter":
            return x + out * self.gain
        if self.kind == "values":
            return x + out if out.sum() > 0 else x - out
        if self.kind == "inplace":
            out += x
            return out
        if self.kind == "random":
            return x + out * (2.0 if random.random() < 0.5 else 1.0)
        if self.kind == "noise":
            return x + out * torch.rand(())
        if self.kind == "dropout":
            return x + nn.functional.dropout(out, 0.5, self.training)
        if self.kind == "twice":
            return self.node(out) + x
        return self.act(x + out) if self.kind == "inplace module" else x + out


@pytest.mark.parametrize(
    "kind", ["parameter", "values", "inplace", "inplace module", "random", "noise", "dropout", "twice", "hooked"]
)
def test_blocks_that_are_no_graph_stay_one_step(kind):
    block = Block(kind)
    if kind == "hooked":
        block.register_forward_hook(lambda *_: None)
    draws = torch.get_rng_state(), random.getstate()
    assert steps_of(block) == 1
    assert torch.equal(draws[0], torch.get_rng_state())
    assert draws[1] == random.getstate()
    assert steps_of(Block("")) == 4


@pytest.mark.parametrize("kind", ["parameter", "inplace", "noise", "dropout", "twice"])
def test_they_are_exact_as_before(kind):
    assert compare(lambda: Fixed(finest), lambda: build(middle=lambda c: Block(kind)), torch.float64) <= 1e-10


def test_a_number_that_changes_between_steps_is_read_again():
    x, y = batch(dtype=torch.float64)
    results = []
    for kind in (BPTT, lambda: Fixed(finest)):
        model, method = NETS["own-block"]().double(), kind()
        prepared(method, model, x)
        run(method, model, x, y)
        model.stages[1].factor = 3.0
        results.append(run(method, model, x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10
    assert torch.equal(results[1].out.logits, results[0].out.logits)


def test_a_violated_width_of_a_cut_block_is_widened(monkeypatch):
    x, y = batch(dtype=torch.float64)
    expected = run(BPTT(), NETS["sew"]().double().train(), x, y)
    method = Fixed(fine)
    monkeypatch.setattr("tests.methods.test_levels.widths_of", partial(_narrow))
    got = run(method, prepared(method, NETS["sew"]().double(), x), x, y)
    assert method.plan()["redone_steps"] == 1
    assert difference(got.gradients, expected.gradients) <= 1e-10
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())


def _narrow(model: StagedModel, segments: list[Segment]) -> list[int]:
    from methods._layout import parts, places

    return [0 if place == (0, 0) else 1 for place in places(parts(model, segments))]
