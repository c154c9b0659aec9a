"""DECOLLE: its neuron against LIF, its gradient against the equation, its read-outs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import StagedModel, reset_states
from methods._local import AUXILIARIES, layers_of
from methods.decolle import DECOLLE, DECOLLEOptions, RefractoryNode, SynapticTrace
from tests.methods.nets import (
    batch,
    build,
    conv,
    difference,
    integrate,
    lif,
    loss,
    no_norm,
    per_step,
    plif,
    prepared,
    run,
)

SOFT: dict[str, Any] = {"v_reset": None, "detach_reset": True}


def chain(node: Any = None) -> StagedModel:
    """Two layers without bias and normalisation; every one has one weight."""
    torch.manual_seed(0)
    node = node or lif(**SOFT)
    stages = [
        nn.Sequential(layer.Conv2d(a, b, 3, padding=1, bias=False, step_mode="m"), node()) for a, b in ((2, 4), (4, 4))
    ]
    with torch.no_grad():
        stages[1][0].weight.mul_(8)  # so that both layers fire
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(4 * 64, 3, step_mode="m"))
    return StagedModel(stages, head, "none").double()


def as_lif(**options: Any) -> DECOLLE:
    """Options that make the neuron a LIF neuron (tau = 2, threshold 0.5) with soft reset."""
    return DECOLLE(DECOLLEOptions(**{"beta": 0.0, "gamma": 0.5, "rho": 0.5 * 0.5} | options))


@pytest.mark.parametrize("decay_input", [True, False])
def test_neuron_is_lif_with_soft_reset_without_synaptic_filter(decay_input):
    x, _ = batch(12, dtype=torch.float64)
    node = lif(decay_input=decay_input, **SOFT)
    plain = chain(node)
    expected = plain(x)
    assert float(expected.detach().std()) > 0.01
    model = as_lif().prepare(chain(node).train(), x, loss())
    functional.set_step_mode(model, "m")
    assert torch.allclose(model(x), expected, rtol=1e-12, atol=1e-14)
    model = as_lif(gamma=0.0, rho=0.0).prepare(chain(node).train(), x, loss())
    functional.set_step_mode(model, "m")
    assert not torch.allclose(model(x), expected)


def test_double_trace_is_the_cascade_of_two_filters():
    trace = SynapticTrace(alpha=0.5, gain=0.25, beta=0.8)
    trace.step_mode = "m"
    impulse = torch.zeros(30, 1, dtype=torch.float64)
    impulse[0] = 1
    q = 0.2 * 0.8 ** torch.arange(30, dtype=torch.float64)
    expected = [sum(0.25 * 0.5 ** (t - k) * float(q[k]) for k in range(t + 1)) for t in range(30)]
    assert torch.allclose(trace(impulse).squeeze(1), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    trace.reset()
    assert float(trace(torch.ones(400, 1))[-1]) == pytest.approx(0.25 / 0.5, rel=1e-4)  # gain of LIF's own filter


@pytest.mark.parametrize("detach_reset", [True, False])
def test_single_steps_are_the_multi_step_forward(detach_reset):
    x, _ = batch(6, dtype=torch.float64)
    model = DECOLLE().prepare(chain(lif(detach_reset=detach_reset)).train(), x, loss())
    singles = torch.stack([model(step) for step in x])
    reset_states(model)
    functional.set_step_mode(model, "m")
    assert torch.equal(model(x), singles)


def test_gradient_is_error_times_double_trace():
    """``grad W = sum_t dL[t]/dU[t] P[t]``, from the definitions."""
    x, y = batch(5, dtype=torch.float64)
    method = DECOLLE()
    model = prepared(method, chain(), x)
    weight = model.stages[0][0].weight.detach().clone()
    read_out = getattr(model, AUXILIARIES)[0].linear
    got = run(method, model, x, y).gradients["stages.0.0.weight"]
    q = p = r = torch.zeros(())
    total = torch.zeros_like(weight)
    one_hot = F.one_hot(y, 3).double()
    surrogate_function = surrogate.ATan()
    for step in x:
        q = 0.85 * q + 0.15 * step
        p = 0.5 * p + 0.5 * q
        w = weight.clone().requires_grad_()
        u = F.conv2d(p, w, padding=1) - 1.0 * r
        s = surrogate_function(u - 0.5)
        r = 0.65 * r + s.detach()
        (F.smooth_l1_loss(read_out(s.flatten(1)), one_hot) / 5).backward()
        total += w.grad
    assert total.norm() > 0
    assert torch.allclose(got, total, rtol=1e-11, atol=1e-14)


def test_read_outs_are_random_and_fixed():
    x, y = batch(4)
    method = DECOLLE()
    model = prepared(method, build(norm=per_step), x)
    tails = getattr(model, AUXILIARIES)
    assert len(tails) == len(layers_of(model)) - 1
    bound = 0.5 / math.sqrt(4 * 8 * 8)
    weight = tails[0].linear.weight
    assert weight.shape == (3, 4 * 8 * 8)
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not any(parameter.requires_grad for parameter in tails.parameters())
    before = [parameter.clone() for parameter in tails.parameters()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = run(method, model, x, y).gradients
    for name, parameter in model.named_parameters():
        parameter.grad = found.get(name)
    optimizer.step()
    assert not any(name.startswith(AUXILIARIES) for name in found)
    assert all(torch.equal(a, b) for a, b in zip(before, tails.parameters(), strict=True))


def test_every_weight_takes_the_leak_of_the_neuron_after_it():
    x, _ = batch(4)
    model = DECOLLE().prepare(build(integrate(), no_norm).train(), x, loss())
    traces = [module for module in model.modules() if isinstance(module, SynapticTrace)]
    assert [(t.alpha, t.gain) for t in traces] == [(1.0, 1.0)] * 3
    model = DECOLLE().prepare(build(lif(tau=4.0)).train(), x, loss())
    assert {(t.alpha, t.gain) for t in model.modules() if isinstance(t, SynapticTrace)} == {(0.75, 0.25)}
    assert not any(isinstance(module, neuron.LIFNode) for module in model.modules())
    assert not any(isinstance(module, SynapticTrace) for module in model.head.modules())
    nodes = {name for name, module in model.named_modules() if isinstance(module, RefractoryNode)}
    assert nodes == {"stages.0.2", "stages.1.node", "stages.3.2"}


def test_model_is_changed_and_says_so():
    x, y = batch(6)
    keys = list(build(norm=per_step).state_dict())
    method = DECOLLE()
    assert method.model.startswith("changed: ")
    model = prepared(method, build(norm=per_step), x)
    run(method, model, x, y)
    plain = method.finish(model)
    assert list(plain.state_dict()) == keys
    with torch.no_grad():
        reset_states(plain)
        out = plain.eval()(x)
    assert out.shape == (6, 3, 3)
    assert any(isinstance(module, RefractoryNode) for module in plain.modules())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build(plif(), per_step), "only LIFNode and IFNode have a fixed leak"),
        (lambda: build(norm=per_step, node=nn.Identity), "no LIF or IF neuron, and so no trace"),
        (lambda: build(), "the model's is over_time"),
    ],
)
def test_refuses(model, reason):
    assert reason in str(DECOLLE().supports(model(), loss()))


def test_the_last_layer_learns_from_the_head_and_the_objective():
    x, y = batch(5, dtype=torch.float64)
    method = DECOLLE()
    model = prepared(method, chain(), x)
    found = run(method, model, x, y).gradients
    halved = DECOLLE()
    torch.manual_seed(0)
    other = prepared(halved, chain(), x)
    other.load_state_dict(model.state_dict())
    objective = loss()
    objective.criterion = lambda logits, target: 0.5 * nn.functional.cross_entropy(logits, target)
    half = run(halved, other, x, y, objective).gradients
    last = {name: value for name, value in found.items() if name.startswith(("stages.1", "head"))}
    assert difference({name: 2 * half[name] for name in last}, last) <= 1e-12
    assert torch.equal(half["stages.0.0.weight"], found["stages.0.0.weight"])


def test_trace_is_of_the_dtype_of_its_input():
    trace: Any = SynapticTrace(0.5, 0.5, 0.85)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        trace.reset()
        out: Tensor = trace(torch.ones(3, dtype=dtype))
        assert out.dtype == dtype


def test_conv_stage_with_normalisation_runs_it_between_trace_and_neuron():
    x, _ = batch(4)
    model = build(norm=per_step, middle=lambda c: conv(c, c, lif(), per_step))
    model = DECOLLE().prepare(model.train(), x, loss())
    seen: list[Tensor] = []
    model.stages[1][1].register_forward_hook(lambda _module, _args, out: seen.append(out))
    model.stages[1][2].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model(x[0])
    assert seen[0] is seen[1]
