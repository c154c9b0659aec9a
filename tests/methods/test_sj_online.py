"""SpikingJelly's online nodes: their settings, and agreement with our sltt and ottt where the two are the same rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from harness.contracts import StagedModel, reset_states
from methods.bptt import BPTT
from methods.ottt import OTTT
from methods.sj_online import SJOTTT, SJSLTT, SJOnlineOptions
from methods.sltt import SLTT
from tests.methods.nets import (
    AddBlock,
    batch,
    build,
    conv,
    difference,
    integrate,
    lif,
    loss,
    over_time,
    per_step,
    plif,
    prepared,
    run,
)
from tests.methods.test_sltt import weight_standardised

DEFAULT_SLTT = {"tau": 2.0, "decay_input": True, "v_reset": 0.0, "surrogate_function": surrogate.Sigmoid(4.0)}
PAPER_SLTT = {
    "tau": 1.1,
    "decay_input": False,
    "v_reset": None,
    "surrogate_function": surrogate.PiecewiseQuadratic(1.0),
}
OTTTS = {"tau": 2.0, "decay_input": False, "v_reset": None, "surrogate_function": surrogate.Sigmoid(4.0)}
COMMON = {"v_threshold": 1.0, "detach_reset": True}


def sltt(settings: str) -> SJSLTT:
    return SJSLTT(SJOnlineOptions(settings=settings))  # type: ignore[arg-type]


def linear_paths(node: Any, norm: Any = per_step, **options: Any) -> StagedModel:
    """Nothing but linear layers between a neuron and the next weight: there OTTT's trace is one thing only."""
    model = build(node, norm, middle=lambda c: conv(c, c, node, norm), **options)
    model.stages[2] = layer.AvgPool2d(2, step_mode="m")
    return model


@pytest.mark.parametrize(("settings", "expected"), [("default", DEFAULT_SLTT), ("paper", PAPER_SLTT)])
def test_sj_sltt_is_our_sltt_on_a_model_with_its_settings(settings, expected):
    x, y = batch(5, dtype=torch.float64)
    theirs, ours = build(lif(tau=3.0), per_step).double(), build(lif(**expected, **COMMON), per_step).double()
    method = sltt(settings)
    got = run(method, prepared(method, theirs, x), x, y)
    wanted = run(SLTT(), prepared(SLTT(), ours, x), x, y)
    assert got.updates == 1
    assert difference(got.gradients, wanted.gradients) <= 1e-12
    assert torch.equal(got.out.logits, wanted.out.logits)
    assert torch.allclose(got.out.loss, wanted.out.loss, rtol=1e-12)
    assert all(torch.equal(got.buffers[name], value) for name, value in wanted.buffers.items())


def test_sj_ottt_is_our_ottt_where_paths_are_linear():
    x, y = batch(5, dtype=torch.float64)
    theirs, ours = linear_paths(lif(tau=3.0)).double(), linear_paths(lif(**OTTTS, **COMMON)).double()
    got = run(SJOTTT(), prepared(SJOTTT(), theirs, x), x, y)
    wanted = run(OTTT(), prepared(OTTT(), ours, x), x, y)
    assert difference(got.gradients, wanted.gradients) <= 1e-12
    assert torch.equal(got.out.logits, wanted.out.logits)
    assert all(torch.equal(got.buffers[name], value) for name, value in wanted.buffers.items())


def test_max_pooling_of_a_trace_is_another_rule():
    """SpikingJelly pools the trace, ours traces what was pooled (methods/ottt.py says why)."""
    x, y = batch(5, dtype=torch.float64)
    node = lif(**OTTTS, **COMMON)
    nets = [build(node, per_step, middle=lambda c: conv(c, c, node, per_step)).double() for _ in range(2)]
    got, wanted = (run(m, prepared(m, net, x), x, y) for m, net in zip((SJOTTT(), OTTT()), nets, strict=True))
    assert torch.equal(got.out.logits, wanted.out.logits)
    assert difference(got.gradients, wanted.gradients) > 1e-4


@pytest.mark.parametrize("method", [SJSLTT(), sltt("paper"), SJOTTT()], ids=["sltt", "sltt-paper", "ottt"])
def test_equal_to_bptt_at_one_time_step_and_biased_later(method):
    for T in (1, 5):
        x, y = batch(T, dtype=torch.float64)
        model = linear_paths(lif()).double()
        reference = method.finish(prepared(method, copy.deepcopy(model), x))
        ours = run(method, prepared(method, model, x), x, y)
        bptt = run(BPTT(), reference.train(), x, y)
        assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
        assert all(torch.allclose(ours.buffers[name], value, rtol=1e-12) for name, value in bptt.buffers.items())
        error = difference(ours.gradients, bptt.gradients)
        assert error <= 1e-12 if T == 1 else error > 1e-3


@pytest.mark.parametrize(
    ("method", "expected"), [(SJSLTT(), DEFAULT_SLTT), (sltt("paper"), PAPER_SLTT), (SJOTTT(), OTTTS)]
)
def test_the_finished_model_has_plain_nodes_of_the_same_settings(method, expected):
    x, _ = batch()
    model = linear_paths(lif())
    keys = list(model.state_dict())
    prepared(method, model, x)
    nodes = [m for m in model.modules() if isinstance(m, neuron.LIFNode)]
    assert {type(node) for node in nodes} == {method.node}
    model.eval()
    with torch.no_grad():
        steps = torch.stack([model(step) for step in x])
    finished = method.finish(model)
    nodes = [m for m in finished.modules() if isinstance(m, neuron.LIFNode)]
    assert {type(node) for node in nodes} == {neuron.LIFNode}
    assert len(nodes) == 3
    for node in nodes:
        for name, value in (expected | COMMON).items():
            found = getattr(node, name)
            assert found.alpha == value.alpha if name == "surrogate_function" else found == value, name
    assert list(finished.state_dict()) == keys
    assert type(finished) is StagedModel
    reset_states(finished)
    with torch.no_grad():
        assert torch.allclose(finished(x), steps, atol=1e-6)


@pytest.mark.parametrize("method", [SJSLTT(), SJOTTT()], ids=["sltt", "ottt"])
def test_autocast_reaches_every_weight(method):
    """OTTTSequential runs weights without a graph first; older torch then lost their gradients (pytorch #165068)."""
    x, y = batch(4)
    model = linear_paths(lif())
    prepared(method, model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run(method, model, x, y)
    full = run(method, model, x, y)
    assert low.gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in low.gradients.values())
    assert all(float(g.norm()) > 0 for g in low.gradients.values())
    assert difference(low.gradients, full.gradients) < 0.5  # spikes near the threshold flip


def test_weight_standardised_models_and_the_papers_setting():
    x, y = batch(4, dtype=torch.float64)
    model, paper = weight_standardised().double(), SJOTTT(SJOnlineOptions(settings="paper"))
    model.stages[1] = layer.MaxPool2d(1, step_mode="m")
    assert paper.supports(model, loss()) is None
    step = run(paper, prepared(paper, model, x), x, y)
    assert step.gradients.keys() == dict(model.named_parameters()).keys()
    assert "weight_standardised" in str(paper.supports(linear_paths(lif()), loss()))


@pytest.mark.parametrize("method", [SJSLTT(), SJOTTT()], ids=["sltt", "ottt"])
def test_unsupported_is_explained(method):
    assert "per_step, weight_standardised or none" in method.supports(linear_paths(lif(), over_time), loss())
    assert "per_step loss" in method.supports(linear_paths(lif()), loss("time_mean"))
    assert "stages.0.2 is a ParametricLIFNode" in method.supports(linear_paths(plif()), loss())
    assert "stages.0.2 is a IFNode" in method.supports(linear_paths(integrate()), loss())
    silent = StagedModel([nn.Identity()], layer.Linear(2, 3, step_mode="m"), "none")
    assert "no neuron" in method.supports(silent, loss())


def test_what_does_not_run_as_a_flat_sequence_is_refused():
    blocks = build(norm=per_step, middle=lambda c: AddBlock(c, lif(), per_step))
    assert SJSLTT().supports(blocks, loss()) is None
    assert "stages.1 (AddBlock) has neurons inside" in str(SJOTTT().supports(blocks, loss()))
    late = linear_paths(lif())
    late.stages[0] = nn.Sequential(late.stages[0][0], late.stages[0][2], late.stages[0][1])
    assert "stages.0.2 would update its statistics twice" in str(SJOTTT().supports(late, loss()))

    class Other(StagedModel):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = linear_paths(lif())
    assert "Other overrides" in str(SJOTTT().supports(Other(model.stages, model.head, "per_step"), loss()))
