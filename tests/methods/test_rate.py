"""Rate-based backpropagation against BPTT where they agree; its two modes, its statistics, its memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, surrogate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import Loss, StagedModel, reset_states
from harness.predict import convert
from harness.spikes import SpikeRecorder, flipped
from methods._rates import RateNeuron
from methods.bptt import BPTT
from methods.rate import Rate, RateOptions
from tests.methods.nets import (
    AddBlock,
    batch,
    build,
    conv,
    difference,
    integrate,
    lif,
    loss,
    no_norm,
    over_time,
    per_step,
    plif,
    prepared,
    run,
)
from tests.methods.test_memory import track

SOFT: dict[str, Any] = {"v_reset": None, "detach_reset": True}
MODES = ["multi_step", "single_step"]
NODES: dict[str, Any] = {
    "soft, detached": lif(**SOFT),
    "soft, detached, plain input": lif(**SOFT, decay_input=False, tau=1.5),
    "soft, in the graph": lif(v_reset=None, detach_reset=False),
    "hard, detached": lif(v_reset=0.0, detach_reset=True),
    "hard, in the graph": lif(v_reset=-0.25, detach_reset=False, decay_input=False),
    "if": integrate(**SOFT),
    "if, hard": integrate(v_reset=0.0, detach_reset=True),
    "sigmoid": lif(**SOFT, surrogate_function=surrogate.Sigmoid()),
}


def rate(mode: str = "multi_step") -> Rate:
    return Rate(RateOptions(mode=mode))  # type: ignore[arg-type]


def shallow(node: Any, norm: Any = no_norm, layers: int = 1, weight: Any = layer.Conv2d) -> StagedModel:
    """``layers`` of conv - norm - neuron - average pooling, read-out; input ``[T, N, 2, 8, 8]``."""
    torch.manual_seed(0)
    stages = []
    for n in range(layers):
        pool = layer.AvgPool2d(2, step_mode="m")
        stages.append(nn.Sequential(weight(4 if n else 2, 4, 3, padding=1, step_mode="m"), norm(4), node(), pool))
        with torch.no_grad():
            stages[-1][0].weight.mul_(4)
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(4 * (8 // 2**layers) ** 2, 3, step_mode="m"))
    modes = {no_norm: "none", over_time: "over_time", per_step: "per_step"}
    return StagedModel(stages, head, modes[norm])  # type: ignore[arg-type]


def static(T: int = 6) -> tuple[Tensor, Tensor]:
    x, y = batch(1, dtype=torch.float64)
    return x.expand(T, *x.shape[1:]).clone(), y


def both(method: Any, model: StagedModel, x: Tensor, y: Tensor, kind: str) -> tuple[Any, Any]:
    """One step of ``method`` and of BPTT on the same weights."""
    results = []
    for instance in (method, BPTT()):
        mine = copy.deepcopy(model).to(x.dtype).train()
        assert instance.supports(mine, loss(kind)) is None
        results.append(run(instance, instance.prepare(mine, x, loss(kind)), x, y, loss(kind)))
    return results[0], results[1]


def cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    one, two = (torch.cat([g[name].flatten() for name in b]) for g in (a, b))
    return float(one @ two / (one.norm() * two.norm()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node", NODES)
def test_one_layer_with_static_input_is_bptt(node, mode):
    ours, bptt = both(rate(mode), shallow(NODES[node]), *static(), "time_mean")
    assert all(g.any() for g in bptt.gradients.values())
    assert difference(ours.gradients, bptt.gradients) <= 1e-12


@pytest.mark.parametrize("norm", [over_time, per_step])
def test_so_it_is_with_batch_normalisation(norm):
    # Static input: the statistics over T x N are those of every step.
    ours, bptt = both(rate(), shallow(NODES["soft, detached"], norm), *static(), "time_mean")
    assert difference(ours.gradients, bptt.gradients) <= 1e-12
    assert bptt.gradients["stages.0.1.weight"].any()


def test_and_with_standardised_weights():
    model = shallow(NODES["soft, detached"], weight=layer.WSConv2d)
    model.normalisation = "weight_standardised"
    with torch.no_grad():
        model.stages[0][0].gain.mul_(3)
    ours, bptt = both(rate("single_step"), model, *static(), "time_mean")
    assert bptt.gradients["stages.0.0.gain"].any()
    assert difference(ours.gradients, bptt.gradients) <= 1e-12


@pytest.mark.parametrize("norm", [no_norm, over_time, per_step])
def test_two_layers_are_close_to_bptt_but_not_equal(norm):
    ours, bptt = both(rate(), shallow(NODES["soft, detached"], norm, layers=2), *static(8), "time_mean")
    # methods.md saw 0.999; here 0.99996 without normalisation, 0.9993 and 0.9989 with it.
    least = 0.999 if norm is no_norm else 0.998
    assert least < cosine(ours.gradients, bptt.gradients) < 1 - 1e-6


@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [no_norm, per_step, over_time])
def test_forward_loss_and_running_statistics_are_bptts(mode, norm, kind):
    if (mode, norm) == ("single_step", over_time):
        assert "the model's is over_time" in rate(mode).supports(shallow(lif(), norm), loss(kind))
        return
    x, y = batch(5, dtype=torch.float64)
    ours, bptt = both(rate(mode), shallow(lif(), norm, layers=2), x, y, kind)
    assert ours.updates == 1
    assert torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-12)
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert not ours.out.loss.requires_grad
    assert not ours.out.logits.requires_grad
    assert ours.gradients.keys() == bptt.gradients.keys()
    assert ours.buffers.keys() == bptt.buffers.keys()
    assert all(torch.allclose(ours.buffers[name], value, rtol=1e-12) for name, value in bptt.buffers.items())


@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
@pytest.mark.parametrize("middle", ["block", "dropout", "hard"])
def test_the_modes_agree(middle, kind):
    nets: dict[str, Any] = {
        "block": lambda: build(norm=per_step),
        "dropout": lambda: build(norm=per_step, middle=lambda c: layer.Dropout(0.4, step_mode="m")),
        "hard": lambda: build(lif(detach_reset=False), no_norm, middle=lambda c: conv(c, c, lif(), no_norm)),
    }
    x, y = batch(5, dtype=torch.float64)
    results = []
    for mode in MODES:
        model, method = nets[middle]().double().train(), rate(mode)
        results.append(run(method, method.prepare(model, x, loss(kind)), x, y, loss(kind)))
    assert difference(results[0].gradients, results[1].gradients) <= 1e-12


def test_the_readout_learns_from_the_mean_spike():
    """``grad W = (sum_t dL/do[t]) r^T``, which is BPTT's where the loss is on the mean."""
    x, y = batch(5, dtype=torch.float64)
    ours, bptt = both(rate(), shallow(lif(), layers=2), x, y, "time_mean")
    for name in ("head.1.weight", "head.1.bias"):
        assert torch.allclose(ours.gradients[name], bptt.gradients[name], rtol=1e-12, atol=1e-15)


def test_eligibility_of_the_paper():
    """``g = mean_t e[t] psi[t]``, ``e <- 1 + lam e``, soft detached reset."""
    node = lif(**SOFT, decay_input=False, tau=4.0, step_mode="s")()
    x = torch.rand((7, 20), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twin, v, e = RateNeuron(node), torch.zeros(20).double(), 1.0
    slope, spikes = torch.zeros(20).double(), torch.zeros(20).double()
    for step in x:
        u = 0.75 * v + step
        s = (u >= 0.5).double()
        slope += e * node.surrogate_function.backward(torch.ones_like(u), u - 0.5, 2.0) / len(x)
        spikes += s / len(x)
        assert torch.equal(twin.spikes(node, step), s)
        v, e = u - 0.5 * s, 1 + 0.75 * e
    twin.settle()
    current = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    out = twin(current)
    out.sum().backward()
    assert torch.allclose(out, spikes)
    assert torch.allclose(current.grad, slope)


def test_recorders_see_the_spikes_and_nothing_of_the_rate_pass():
    x, y = batch(4, dtype=torch.float64)
    recorded = []
    for instance in (rate(), rate("single_step"), BPTT()):
        model = build(norm=per_step).double().train()
        instance.prepare(model, x, loss())
        with SpikeRecorder(model) as recorder:
            run(instance, model, x, y)
        recorded.append(recorder)
    assert flipped(recorded[0], recorded[2]) == 0.0
    assert flipped(recorded[1], recorded[2]) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
def test_saved_bytes_are_flat_in_time(mode, kind, monkeypatch):
    monkeypatch.setattr("tests.methods.test_memory.loss", lambda: loss(kind))
    values = [track(rate(mode), build(norm=per_step), *batch(T)).saved_bytes for T in (2, 4, 8, 16)]
    assert len(set(values)) == 1, values


def test_single_step_holds_no_sequence():
    peaks = {
        mode: [track(rate(mode), build(norm=per_step), *batch(T)).activation_bytes for T in (4, 16)] for mode in MODES
    }
    assert peaks["single_step"][0] == peaks["single_step"][1]
    assert peaks["multi_step"][1] > 1.5 * peaks["multi_step"][0]
    bptt = [track(BPTT(), build(norm=per_step), *batch(T)).activation_bytes for T in (4, 16)]
    assert peaks["multi_step"][1] < 0.5 * bptt[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", [per_step, over_time])
def test_fake_tensors_cost_the_same_bytes(mode, autocast, norm):
    if (mode, norm) == ("single_step", over_time):
        norm = no_norm
    x, y = batch(4)
    real = track(rate(mode), build(norm=norm), x, y, autocast)
    model = build(norm=norm)
    with FakeTensorMode() as fakes:
        fake = track(rate(mode), convert(model, fakes), fakes.from_tensor(x), fakes.from_tensor(y), autocast)
    assert fake.timeline == real.timeline
    assert fake.split == real.split


@pytest.mark.parametrize("mode", MODES)
def test_autocast_reaches_every_weight(mode):
    x, y = batch(4)
    model, method = build(norm=per_step), rate(mode)
    full = run(method, prepared(method, model, x), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run(method, model, x, y)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() and g.any() for g in low.gradients.values())
    assert 0 < difference(low.gradients, full.gradients) < 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(mode, dtype):
    x, y = (t.to(dtype) if t.is_floating_point() else t for t in static(3))
    ours, bptt = both(rate(mode), shallow(NODES["soft, detached"]), x, y, "time_mean")
    assert all(g.dtype == dtype for g in ours.gradients.values())
    assert difference(ours.gradients, bptt.gradients) <= 3e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
def test_gradients_are_scaled_where_the_precision_asks_for_it(mode, kind):
    x, y = batch(3)
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=8.0)):
        objective = Loss(kind, nn.CrossEntropyLoss())  # type: ignore[arg-type]
        objective.scaler = scaler
        model, method = build(norm=per_step), rate(mode)
        results.append(run(method, prepared(method, model, x), x, y, objective).gradients)
    assert difference({name: g / 8 for name, g in results[1].items()}, results[0]) <= 1e-6


def test_the_model_is_left_as_it_was_even_after_an_error():
    x, y = batch(3)
    model, method = build(norm=per_step), rate("single_step")
    modules, keys = dict(model.named_modules()), list(model.state_dict())
    prepared(method, model, x)
    run(method, model, x, y)
    model.head[1].register_forward_hook(lambda _m, args, _o: 1 / 0 if args[0].requires_grad else None)
    with pytest.raises(ZeroDivisionError):
        run(method, model, x, y)
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == keys
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
    model.head[1]._forward_hooks.clear()
    plain = method.finish(model)
    reset_states(plain)
    reference = build(norm=per_step)
    reference.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(x), reference.eval()(x))


def test_frozen_batch_normalisation_uses_its_running_statistics():
    model = shallow(NODES["soft, detached"], over_time)
    model.train()
    model.stages[0][1].eval()
    x, y = static()
    results = []
    for instance in (rate(), BPTT()):
        mine = copy.deepcopy(model).double()
        results.append(run(instance, mine, x, y, loss("time_mean")))
    assert difference(results[0].gradients, results[1].gradients) <= 1e-12
    assert all(torch.equal(results[0].buffers[name], value) for name, value in results[1].buffers.items())


def test_unsupported_is_explained():
    def reason(middle: Any, mode: str = "multi_step") -> str:
        return rate(mode).supports(build(lif(), no_norm, middle=lambda c: middle), loss())

    assert "another mask" in reason(nn.Dropout(0.5))
    assert "stages.1 (BatchNorm2d): it is torch's" in reason(nn.BatchNorm2d(4))
    assert "stages.1 (GroupNorm): its parameters" in reason(layer.GroupNorm(2, 4, step_mode="m"))
    assert "stages.1 (Delay): only LIFNode and IFNode" in reason(layer.Delay(1, step_mode="m"))
    assert "ParametricLIFNode): only LIFNode" in rate().supports(build(plif(), per_step), loss())
    block = AddBlock(4, lif(), over_time)
    assert "runs twice" in reason(nn.Sequential(block, block))
    odd = lif(surrogate_function=surrogate.S2NN())
    assert "S2NN has no derivative" in rate().supports(build(odd, per_step), loss())
    silent = StagedModel([layer.Conv2d(2, 4, 3, step_mode="m")], layer.Flatten(step_mode="m"), "none")
    assert "no LIF or IF neuron" in rate().supports(silent, loss())
    assert reason(layer.Dropout(0.5, step_mode="m"), "single_step") is None
    functional.set_step_mode(silent, "s")
