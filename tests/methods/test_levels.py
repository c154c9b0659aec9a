"""Levels O2 to O4: exact in every layout, lower at every level, predicted to the byte, no cut that changes anything."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase

from harness import conformance
from harness.contracts import StagedModel, reset_states
from harness.ledger import BLOCK, Ledger, LedgerReport
from harness.predict import convert
from methods import _plan, _twin
from methods._layout import Segment, can_cut, in_time, neurons, part, parts, places, programs, value_bounds, whole
from methods._program import Program
from methods.bptt import BPTT
from methods.checkpoint_compress import CheckpointCompress, CheckpointCompressOptions
from methods.packing import RAW
from methods.widths import width_of
from suites.torchvision_shim import ensure_torchvision
from tests.methods import test_segment as defects
from tests.methods.nets import (
    AddBlock,
    Scale,
    batch,
    build,
    conv,
    difference,
    lif,
    loss,
    no_norm,
    over_time,
    per_step,
    plif,
    prepared,
    run,
)
from tests.methods.test_checkpoint_compress import Gain, noisy_net
from tests.methods.test_exactness import NETS, TOLERANCE, compare

LEVELS = ("O1", "O2", "O3", "O4")


def at(level: str, **options: Any) -> Any:
    """A factory of the method at a level."""
    return partial(CheckpointCompress, CheckpointCompressOptions(level=level, **options))


def sew(channels: int, outputs: int | None = None, cnf: str = "ADD") -> nn.Module:
    ensure_torchvision()
    from spikingjelly.activation_based.model.sew_resnet import BasicBlock

    shortcut = None
    if outputs is not None:
        shortcut = nn.Sequential(layer.Conv2d(channels, outputs, 1, step_mode="m"), over_time(outputs))
    block = BasicBlock(channels, outputs or channels, 1, shortcut, norm_layer=over_time, cnf=cnf, spiking_neuron=lif())
    for module in block.modules():
        if isinstance(module, base.StepModule):
            module.step_mode = "m"
    return block


MORE: dict[str, Any] = {
    "sew": lambda: build(middle=sew),
    "sew-shortcut": lambda: build(middle=lambda c: nn.Sequential(sew(c, 6), conv(6, c, lif(), over_time))),
    "sew-iand": lambda: build(middle=lambda c: sew(c, cnf="IAND")),
    "pooled": lambda: build(
        middle=lambda c: conv(c, c, plif(v_reset=None), per_step, layer.MaxPool2d(3, 1, 1, step_mode="m"))
    ),
    "deep-stage": lambda: build(
        middle=lambda c: nn.Sequential(
            conv(c, 8, lif(), over_time), nn.Sequential(AddBlock(8, lif(v_reset=None), over_time)), nn.Dropout(0.3),
            layer.Conv2d(8, c, 1, step_mode="m"), lif()(),
        )
    ),
}  # fmt: skip
EVERY = NETS | MORE


def finest(model: StagedModel, chunks: int = 2) -> list[Segment]:
    """Every step a segment, in pieces of time where it may."""
    found = []
    for index, program in enumerate(programs(model.stages)):
        for start in range(len(program.steps)):
            segment = Segment(index, start, start + 1)
            timed = in_time(part(model.stages[index], program, segment).module)
            found.append(replace(segment, chunks=chunks if timed else 1))
    return found


def apart(model: StagedModel) -> list[Segment]:
    """Whole stages, their neurons apart in three pieces."""
    nodes = [[] if in_time(stage) else neurons(stage) for stage in model.stages]
    return [replace(segment, inner=3 * bool(nodes[segment.stage])) for segment in whole(programs(model.stages))]


def widths_of(model: StagedModel, segments: list[Segment]) -> list[int]:
    """What the rules say; raw where they do not know."""
    bounds = value_bounds(model.stages, programs(model.stages))
    return [width_of(bounds[stage][number]) or RAW for stage, number in places(parts(model, segments))]


def mixed(model: StagedModel) -> list[Segment]:
    """As :func:`finest`, every other one plain."""
    return [replace(s, plain=True, chunks=1) if i % 2 else s for i, s in enumerate(finest(model, 3))]


def track(method: Any, model: StagedModel, x: Tensor, y: Tensor, autocast: bool = False) -> LedgerReport:
    """The second of two steps, each in an autocast of its own, as the harness runs them."""
    prepared(method, model, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run(method, model, x, y)
    reset_states(model)
    ledger, objective = Ledger(model), loss()
    ledger.register("inputs", [x, y])
    objective.on_logits = ledger.mark_output
    torch.manual_seed(0)
    with ledger, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        method.step(model, x, y, objective, lambda: None)
    return ledger.report()


LAYOUTS = {"finest": finest, "apart": apart, "mixed": mixed}


class Fixed:
    """The method with a layout instead of a plan."""

    def __init__(self, layout: Any) -> None:
        self.layout, self.method = layout, CheckpointCompress()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def prepare(self, model: StagedModel, x: Tensor, objective: Any) -> StagedModel:
        segments = self.layout(model)
        self.method.replay(
            {"widths": widths_of(model, segments), "segments": [asdict(segment) for segment in segments]}
        )
        return self.method.prepare(model, x, objective)


@pytest.mark.parametrize("net", EVERY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_exact(net, layout):
    assert compare(lambda: Fixed(LAYOUTS[layout]), EVERY[net], torch.float64) <= 1e-10


@pytest.mark.parametrize("net", ["lif-soft", "plif", "per-step-norm", "dropout", "sew", "deep-stage"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_exact_in_float32(net, layout):
    assert compare(lambda: Fixed(LAYOUTS[layout]), EVERY[net], torch.float32) <= 1e-5


PLANNED = ["per-step-norm", "sew", "deep-stage"]


@pytest.mark.parametrize(("net", "level"), [("lif-soft", "O2"), ("dropout", "O3"), *[(net, "O4") for net in PLANNED]])
def test_every_level_is_exact(net, level):
    for dtype, tolerance in TOLERANCE.items():
        assert compare(at(level), EVERY[net], dtype) <= tolerance


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("settings", [{}, {"v_reset": None}, {"detach_reset": True, "decay_input": False}])
def test_pieces_of_time_carry_states_and_their_gradients(chunks, settings):
    """Seven pieces of five steps: as many as there are steps."""
    x, y = batch(5, dtype=torch.float64)
    results = []
    for kind in (BPTT, lambda: Fixed(partial(finest, chunks=chunks))):
        model, method = build(lif(**settings), no_norm).double(), kind()
        results.append(run(method, prepared(method, model, x), x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-12
    assert torch.equal(results[1].out.logits, results[0].out.logits)


@pytest.mark.parametrize("net", PLANNED)
def test_peaks_fall_from_level_to_level_and_are_those_of_the_plan(net):
    """On real runs. The first step of a net with unknown widths plans without them."""
    x, y = batch()
    peaks = {}
    for level in LEVELS:
        method = at(level)()
        report = track(method, EVERY[net](), x, y)
        peaks[level] = report.peak_bytes
        planned = method.plan()["predicted_peak_bytes"]
        assert planned is None if level == "O1" else abs(planned - report.peak_bytes) <= 4 * BLOCK
    assert peaks["O1"] >= peaks["O2"] >= peaks["O3"] >= peaks["O4"], peaks
    assert peaks["O3"] < peaks["O1"], peaks


@pytest.mark.parametrize(
    ("net", "level", "autocast"),
    [("per-step-norm", "O2", True), ("sew", "O3", False), ("deep-stage", "O4", False), ("per-step-norm", "O4", True)],
)
def test_prediction_with_a_replayed_plan_costs_the_same_bytes(net, level, autocast):
    x, y = batch()
    method = at(level)()
    real = track(method, EVERY[net](), x, y, autocast)
    plan = json.loads(json.dumps(method.plan()))
    model = EVERY[net]()
    with FakeTensorMode() as mode:
        replayed = at(level)()
        replayed.replay(plan)
        fake = track(replayed, convert(model, mode), mode.from_tensor(x), mode.from_tensor(y), autocast)
    assert (fake.peak_bytes, fake.saved_bytes, fake.split) == (real.peak_bytes, real.saved_bytes, real.split)
    assert replayed.plan()["segments"] == plan["segments"]


def test_plan_under_fake_tensors_is_that_of_a_real_run():
    x, _ = batch()
    real = at("O4")()
    prepared(real, EVERY["sew"](), x)
    _plan._PLANS.clear()
    _twin._COSTS.clear()
    model, fake = EVERY["sew"](), at("O4")()
    with FakeTensorMode() as mode:
        prepared(fake, convert(model, mode), mode.from_tensor(x))
    assert fake.plan() == real.plan()


@pytest.mark.parametrize("net", ["no-norm", "pooled", *PLANNED])
def test_time_is_cut_only_where_nothing_but_neurons_runs(net):
    x, _ = batch()
    model, method = EVERY[net](), at("O3")()
    prepared(method, model, x)
    for segment, module, *_ in parts(model, [Segment(**s) for s in method.plan()["segments"]]):
        if segment.chunks > 1:
            kinds = [type(m) for m in module.modules()]
            assert not any(issubclass(kind, (_NormBase, layer.Conv2d, layer.Linear, layer.Dropout)) for kind in kinds)
            assert neurons(module)


def test_what_may_run_in_pieces_of_time():
    node = lif()()
    assert in_time(node)
    assert in_time(nn.Sequential(node, layer.MaxPool2d(2, step_mode="m")))
    assert not in_time(nn.Sequential(node, node))  # the state of the first run is the second one's start
    recorded = lif()()
    recorded.store_v_seq = True
    single = lif(step_mode="s")()
    subclass = type("Other", (type(node),), {})(step_mode="m")
    for module in (over_time(4), per_step(4), layer.Conv2d(2, 2, 1, step_mode="m"), nn.Dropout(0.5), recorded, single):
        assert not in_time(module)
    assert not in_time(subclass)
    assert not in_time(nn.Sequential(over_time(4), node))
    assert not in_time(layer.Dropout(0.5, step_mode="m"))


def test_a_neuron_that_two_children_share_is_not_cut():
    node = lif()()
    shared = nn.Sequential(AddBlock(4, lambda: node, over_time), nn.Identity(), node)
    assert not can_cut(Program(shared))
    assert compare(at("O4"), lambda: build(middle=lambda c: shared), torch.float64) <= 1e-10


def test_a_neuron_that_runs_twice_in_a_stage_is_not_set_apart():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = lif()()

        def forward(self, x: Tensor) -> Tensor:
            return self.node(self.node(x) + x)

    def net() -> StagedModel:
        return build(middle=lambda c: nn.Sequential(Twice(), Scale(2.0)))

    assert compare(at("O4"), net, torch.float64) <= 1e-10
    with pytest.raises(RuntimeError, match="a neuron that runs twice in a stage cannot be a segment"):
        compare(lambda: Fixed(apart), net, torch.float64)


@pytest.mark.parametrize(
    "defect",
    [
        partial(defects.test_running_statistics_are_updated_once, momentum=None),
        defects.test_normalisation_in_evaluation_mode_keeps_using_running_statistics,
        partial(defects.test_other_buffers_are_updated_once_and_recomputed_from_their_old_value, replace=True),
        defects.test_membranes_that_are_not_reset_are_where_the_recompute_starts,
        defects.test_random_stream_goes_on_as_after_bptt,
    ],
)
def test_known_defects_of_existing_implementations(defect):
    defect(at("O4"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("net", ["lif", "plif", "sew"])
def test_half_precision_models(layout, dtype, net):
    assert compare(lambda: Fixed(LAYOUTS[layout]), EVERY[net], dtype) <= 1e-2


@pytest.mark.parametrize(("first", "then"), [(0.0, 3.0), (1.0, 0.5), (1.0, 200.0)])
def test_all_zero_probes_and_values_that_are_not_binary(first, then):
    x, y = batch(dtype=torch.float64)
    model, reference, method = noisy_net().double(), noisy_net().double(), at("O4")()
    prepared(method, model, x)
    gain = next(m for m in model.modules() if isinstance(m, Gain))
    gain.factor = first
    run(method, model, x, y)
    reference.load_state_dict(model.state_dict())
    gain.factor = next(m for m in reference.modules() if isinstance(m, Gain)).factor = then
    got, expected = run(method, model, x, y), run(BPTT(), reference.train(), x, y)
    assert difference(got.gradients, expected.gradients) <= 1e-10
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())


def test_nothing_is_rewritten_and_the_input_gets_no_gradient():
    x, y = batch()
    model = EVERY["deep-stage"]()
    before = list(model.state_dict()), [type(m) for m in model.modules()], [vars(m).keys() for m in model.modules()]
    method = at("O4")()
    run(method, prepared(method, model, x), x, y)
    after = list(model.state_dict()), [type(m) for m in model.modules()], [vars(m).keys() for m in model.modules()]
    assert before == after
    assert x.grad is None
    assert method.finish(model) is model


def test_planning_leaves_no_trace():
    x, _ = batch()
    model = EVERY["dropout"]()
    seen: list[Any] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: seen.append(1))
    state, draws = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    prepared(at("O4")(), model, x)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not seen
    assert all(p.grad is None for p in model.parameters())


def test_the_same_cell_is_planned_once(monkeypatch):
    x, _ = batch()
    first = at("O3")()
    prepared(first, EVERY["sew"](), x)
    monkeypatch.setattr(_plan, "_Search", None)
    again = at("O3")()
    prepared(again, EVERY["sew"](), x)
    assert again.plan() == first.plan()


class Opaque(AddBlock):
    """Changes a tensor in place, so that only its values tell what comes out."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.node(self.norm(self.conv(x)))
        out += x
        return out


def test_unknown_widths_are_planned_for_once_they_are_measured():
    x, y = batch()
    method = at("O4")()
    model = prepared(method, build(middle=lambda c: nn.Sequential(*[Opaque(c, lif(), over_time) for _ in range(3)])), x)
    guessed = method.plan()["predicted_peak_bytes"]
    run(method, model, x, y)
    assert method.plan()["width_source"] == "measured"
    assert method.plan()["predicted_peak_bytes"] < guessed


def test_autocast_is_planned_for_in_the_first_step():
    x, y = batch()
    model, method = EVERY["lif"](), at("O4")()
    prepared(method, model, x)
    full = method.plan()["predicted_peak_bytes"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(method, model, x, y)
    assert method.plan()["predicted_peak_bytes"] < full


def test_a_forward_that_depends_on_values_cannot_be_planned_for():
    class Peeks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.max() > 0 else -x

    x, _ = batch()
    prepared(at("O1")(), build(middle=lambda c: Peeks()), x)
    with pytest.raises(ValueError, match=r"stage 1, child 0 \(Peeks\): its forward depends on values.*use level 'O1'"):
        prepared(at("O2")(), build(middle=lambda c: Peeks()), x)


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 0, 3), Segment(2, 0, 1)],
        [Segment(0, 0, 2), Segment(1, 0, 1), Segment(2, 0, 1), Segment(3, 0, 3)],
        [Segment(0, 0, 3), Segment(1, 0, 1), Segment(2, 0, 1), Segment(3, 0, 4)],
        [Segment(0, 0, 3), Segment(1, 0, 1), Segment(2, 0, 1)],
    ],
)
def test_a_plan_for_another_structure_is_refused(segments):
    method = CheckpointCompress()
    method.replay({"widths": [0] * len(segments), "segments": [asdict(s) for s in segments]})
    with pytest.raises(ValueError, match="the plan"):
        prepared(method, build(), batch()[0])


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_conformance(level):
    nets = {name: conformance.NETS[name] for name in ("batch norm over T x N", "dropout")}
    results = conformance.check("checkpoint-compress", {"level": level}, nets)
    assert any(result.passed for result in results)
    assert not [result for result in results if result.passed is False]
