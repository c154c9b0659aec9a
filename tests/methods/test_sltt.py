"""SLTT against BPTT where they agree, and against one backward on the detached graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn

from harness.contracts import StagedModel, reset_states
from methods.bptt import BPTT
from methods.sltt import SLTT
from tests.methods.nets import AddBlock, batch, build, difference, lif, loss, no_norm, per_step, plif, prepared, run


def weight_standardised() -> StagedModel:
    model = build(norm=no_norm, mode="weight_standardised")
    for stage in (model.stages[0], model.stages[3]):
        stage[0] = layer.WSConv2d(stage[0].in_channels, stage[0].out_channels, 3, padding=1, step_mode="m")
    return model


NETS: dict[str, Any] = {
    "per-step-norm": lambda: build(norm=per_step),
    "no-norm-soft": lambda: build(lif(v_reset=None, detach_reset=True), no_norm),
    "plif": lambda: build(plif(), per_step),
    "weight-standardised": weight_standardised,
    "add-blocks": lambda: build(
        norm=per_step, middle=lambda c: nn.Sequential(*[AddBlock(c, lif(), per_step) for _ in range(2)])
    ),
    "dropout": lambda: build(norm=per_step, middle=lambda c: layer.Dropout(0.4, step_mode="m")),
}


def steps(net: Any, T: int, dtype: torch.dtype = torch.float64, change: Any = None) -> tuple[Any, Any]:
    """One step of SLTT and of BPTT on the same weights."""
    x, y = batch(T, dtype=dtype)
    model = net().to(dtype)
    if change is not None:
        change(model)
    reference, method = copy.deepcopy(model), SLTT()
    return run(method, prepared(method, model, x), x, y), run(BPTT(), reference.train(), x, y)


def no_leak(model: nn.Module) -> None:
    """A leak factor of 0; the constructor asks for tau > 1."""
    for module in model.modules():
        if isinstance(module, neuron.LIFNode):
            module.tau = 1.0


@pytest.mark.parametrize("net", NETS)
def test_equals_bptt_at_one_time_step(net):
    ours, bptt = steps(NETS[net], T=1)
    assert difference(ours.gradients, bptt.gradients) == 0.0


@pytest.mark.parametrize("net", [name for name in NETS if name != "plif"])
def test_equals_bptt_without_leak(net):
    # Hard reset to 0 (or detached), so that with no leak nothing is carried over.
    ours, bptt = steps(NETS[net], T=5, change=no_leak)
    assert difference(ours.gradients, bptt.gradients) <= 1e-12


@pytest.mark.parametrize("net", NETS)
def test_readout_gradient_and_forward_equal_bptts_and_the_rest_does_not(net):
    ours, bptt = steps(NETS[net], T=5)
    assert ours.updates == 1
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-12)
    assert not ours.out.loss.requires_grad
    assert not ours.out.logits.requires_grad
    head = [name for name in bptt.gradients if name.startswith("head")]
    assert len(head) == 2
    for name in head:
        assert torch.allclose(ours.gradients[name], bptt.gradients[name], rtol=1e-12, atol=1e-14)
    assert difference(ours.gradients, bptt.gradients) > 1e-3


@pytest.mark.parametrize("net", ["per-step-norm", "weight-standardised"])
def test_running_statistics_equal_bptts_in_the_same_mode(net):
    ours, bptt = steps(NETS[net], T=3)
    assert all(torch.allclose(ours.buffers[name], value, rtol=1e-12) for name, value in bptt.buffers.items())
    counts = [int(b) for name, b in ours.buffers.items() if name.endswith("num_batches_tracked")]
    assert counts == ([3, 3, 3] if net == "per-step-norm" else [])


@pytest.mark.parametrize("net", NETS)
def test_backward_at_every_step_equals_one_backward_on_the_detached_graph(net):
    x, y = batch(5, dtype=torch.float64)
    model = NETS[net]().double()
    other, method = copy.deepcopy(model), SLTT()
    ours = run(method, prepared(method, model, x), x, y)
    functional.set_step_mode(other.train(), "s")
    torch.manual_seed(5)
    logits = []
    for step in x:
        logits.append(other(step))
        functional.detach_net(other)
    loss()(torch.stack(logits), y).backward()
    assert difference(ours.gradients, {name: p.grad for name, p in other.named_parameters()}) <= 1e-12


@pytest.mark.parametrize("settings", [{}, {"v_reset": None, "detach_reset": True, "decay_input": False}])
def test_equals_spikingjellys_node_under_the_same_settings(settings):
    x, y = batch(5, dtype=torch.float64)
    model, method = build(lif(**settings), per_step).double(), SLTT()
    theirs = copy.deepcopy(model)
    functional.set_step_mode(theirs, "s")
    for parent in list(theirs.modules()):
        for name, node in list(parent.named_children()):
            if isinstance(node, neuron.LIFNode):
                same = (node.decay_input, node.v_threshold, node.v_reset, node.surrogate_function, node.detach_reset)
                setattr(parent, name, neuron.SLTTLIFNode(node.tau, *same))
    ours = run(method, prepared(method, model, x), x, y)
    total = torch.zeros((), dtype=torch.float64)
    for step in x:
        value = nn.functional.cross_entropy(theirs.train()(step), y) / len(x)
        value.backward()
        total += value.detach()
    assert difference(ours.gradients, {name: p.grad for name, p in theirs.named_parameters()}) <= 1e-12
    assert torch.allclose(ours.out.loss, total, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_models(dtype):
    ours, bptt = steps(NETS["per-step-norm"], T=1, dtype=dtype)
    assert difference(ours.gradients, bptt.gradients) <= 1e-2
    assert all(g.dtype == dtype for g in ours.gradients.values())


def test_autocast_over_several_steps():
    x, y = batch(4)
    model, method = NETS["per-step-norm"](), SLTT()
    prepared(method, model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run(method, model, x, y)
    assert set(low.gradients) == {name for name, _ in model.named_parameters()}
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in low.gradients.values())


def test_non_contiguous_input():
    x, y = batch(4, dtype=torch.float64)
    gradients = []
    for view in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        model, method = NETS["per-step-norm"]().double(), SLTT()
        gradients.append(run(method, prepared(method, model, x), view, y).gradients)
    assert difference(*gradients) <= 1e-12


def test_state_is_detached_afterwards_and_finish_gives_the_multi_step_model():
    x, y = batch()
    model, method = NETS["per-step-norm"](), SLTT()
    reference = copy.deepcopy(model)
    keys = list(model.state_dict())
    run(method, prepared(method, model, x), x, y)
    membranes = [v for module in model.modules() if isinstance(module, base.MemoryModule) for v in module.memories()]
    assert len(membranes) == 3
    assert all(isinstance(v, Tensor) and not v.requires_grad for v in membranes)
    plain = method.finish(model)
    reset_states(plain)
    reference.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == keys
    assert torch.equal(plain.eval()(x), reference.eval()(x))


def test_states_that_are_lists_are_detached():
    x, y = batch()
    model, method = build(norm=no_norm, middle=lambda c: layer.Delay(1, step_mode="m")), SLTT()
    ours = run(method, prepared(method, model, x), x, y)
    assert ours.updates == 1


def test_unsupported_is_explained():
    assert "per_step loss" in SLTT().supports(build(norm=per_step), loss("time_mean"))
    reason = SLTT().supports(build(), loss())
    assert "per_step, weight_standardised or none" in reason
    assert "over_time" in reason
    only_multi = build(norm=no_norm, middle=lambda c: layer.ThresholdDependentBatchNorm2d(1.0, 1.0, c))
    assert "stages.1 (ThresholdDependentBatchNorm2d) has no single-step mode" in SLTT().supports(only_multi, loss())
    block = AddBlock(4, lif(), per_step)
    twice = build(norm=per_step, middle=lambda c: nn.Sequential(block, block))
    assert "stages.1.1.node (LIFNode) runs twice a step" in SLTT().supports(twice, loss())
    assert all(SLTT().supports(net(), loss()) is None for net in NETS.values())
