"""OTTT against BPTT where they agree, against SpikingJelly's own, and against SLTT for all that is not traced."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.contracts import StagedModel, reset_states
from harness.predict import convert
from methods.bptt import BPTT
from methods.ndot import NDOT
from methods.ottt import OTTT, OTTTOptions
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
    no_norm,
    per_step,
    plif,
    prepared,
    run,
)
from tests.methods.test_memory import track

SOFT: dict[str, Any] = {"v_reset": None, "detach_reset": True}


def avg_pool() -> nn.Module:
    return layer.AvgPool2d(2, stride=2, step_mode="m")


def max_pool() -> nn.Module:
    return layer.MaxPool2d(2, step_mode="m")


def chain(node: Any, pool: Any = avg_pool, seed: int = 0, weight: Any = layer.Conv2d) -> StagedModel:
    """Three conv - neuron - pool stages without normalisation, linear read-out; input ``[T, N, 2, 8, 8]``."""
    torch.manual_seed(seed)
    stages = []
    for inputs, outputs in ((2, 4), (4, 4), (4, 4)):
        stages.append(nn.Sequential(weight(inputs, outputs, 3, padding=1, step_mode="m"), node(), pool()))
        with torch.no_grad():
            stages[-1][0].weight.mul_(8)  # so that all layers fire
    head = nn.Sequential(layer.Flatten(step_mode="m"), layer.Linear(4, 3, step_mode="m"))
    return StagedModel(stages, head, "none")


def gradients(method: Any, model: StagedModel, T: int = 6, **kwargs: Any) -> Any:
    x, y = batch(T, dtype=torch.float64)
    model = copy.deepcopy(model).double().train()
    return run(method, prepared(method, model, x), x, y, **kwargs)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


LAST = "stages.2.0.weight"
BEFORE = "stages.1.0.weight"


@pytest.mark.parametrize("pool", [avg_pool, max_pool, lambda: layer.Dropout(0.3, step_mode="m"), nn.Identity])
@pytest.mark.parametrize("node", [lif(**SOFT), lif(**SOFT, decay_input=False, tau=1.5), integrate(**SOFT)])
def test_last_spiking_layers_weight_is_bptts(node, pool):
    model = chain(node, pool)
    if pool in (nn.Identity,) or "Dropout" in repr(model):
        model.head[1] = layer.Linear(4 * 64, 3, step_mode="m")
    ours, bptt = gradients(OTTT(), model), gradients(BPTT(), model)
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-12)
    assert bptt.gradients[LAST].any()
    assert error(ours.gradients[LAST], bptt.gradients[LAST]) <= 1e-12
    # The layer before it, the last one's bias and the read-out are not BPTT's.
    for name in (BEFORE, "stages.2.0.bias", "head.1.weight"):
        assert error(ours.gradients[name], bptt.gradients[name]) > 1e-3


@pytest.mark.parametrize("settings", [{"v_reset": 0.0, "detach_reset": True}, {"v_reset": None, "detach_reset": False}])
def test_last_spiking_layer_is_biased_with_a_hard_reset_or_with_the_reset_in_the_graph(settings):
    model = chain(lif(**settings))
    ours, bptt = gradients(OTTT(), model), gradients(BPTT(), model)
    assert error(ours.gradients[LAST], bptt.gradients[LAST]) > 0.05


def test_one_time_step_is_bptt():
    model = chain(lif())
    assert difference(gradients(OTTT(), model, T=1).gradients, gradients(BPTT(), model, T=1).gradients) <= 1e-14


def test_without_leak_it_is_bptt():
    model = chain(lif(**SOFT))
    for module in model.modules():
        if isinstance(module, neuron.LIFNode):
            module.tau = 1.0
    assert difference(gradients(OTTT(), model).gradients, gradients(BPTT(), model).gradients) <= 1e-12


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_what_is_not_traced_is_sltts(method):
    model = build(lif(**SOFT), per_step, middle=lambda c: conv(c, c, lif(**SOFT), per_step))
    ours, sltt = gradients(method(), model), gradients(SLTT(), model)
    traced = {"stages.1.0.weight", "stages.3.0.weight", "head.1.weight"}
    for name, gradient in sltt.gradients.items():
        if name in traced:
            assert error(ours.gradients[name], gradient) > 1e-3
        else:
            assert torch.allclose(ours.gradients[name], gradient, rtol=1e-12, atol=1e-15)
    assert all(torch.allclose(ours.buffers[name], value, rtol=1e-12) for name, value in sltt.buffers.items())


class Oracle:
    """SpikingJelly's nodes and container on a copy of ``model``, with the same settings."""

    def __init__(self, model: StagedModel) -> None:
        self.model = copy.deepcopy(model).double().train()
        functional.set_step_mode(self.model, "s")
        self.net = layer.OTTTSequential(*[self._own(m) for stage in self.model.stages for m in stage], *self.model.head)

    @staticmethod
    def _own(module: nn.Module) -> nn.Module:
        if not isinstance(module, neuron.LIFNode):
            return module
        return neuron.OTTTLIFNode(
            module.tau, module.decay_input, module.v_threshold, module.v_reset, module.surrogate_function
        )

    def train(self, x: Tensor, y: Tensor, after: Any = lambda: None) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for step in x:
            value = nn.functional.cross_entropy(self.net(step), y) / len(x)
            value.backward()
            total += value.detach()
            after()
        return total


class Scale(nn.Module):
    """As in weight-standardised networks."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.74 * x


ORACLE_NETS: dict[str, Any] = {
    "soft": lambda: chain(lif(**SOFT, decay_input=False)),
    "hard, decayed input": lambda: chain(lif(v_reset=0.0, detach_reset=True)),
    "weight-standardised": lambda: chain(lif(**SOFT), lambda: nn.Sequential(), weight=layer.WSConv2d),
}


def oracle_net(name: str) -> StagedModel:
    model = ORACLE_NETS[name]()
    if name == "weight-standardised":
        for stage in model.stages:
            stage[2] = Scale()
        model.stages[2].append(layer.AdaptiveAvgPool2d(1, step_mode="m"))
        model.normalisation = "weight_standardised"
    return model


@pytest.mark.parametrize("name", ORACLE_NETS)
def test_equals_spikingjellys(name):
    model = oracle_net(name)
    x, y = batch(6, dtype=torch.float64)
    theirs = Oracle(model)
    total = theirs.train(x, y)
    ours = gradients(OTTT(), model)
    assert torch.allclose(ours.out.loss, total, rtol=1e-12)
    expected = {name: p.grad for name, p in theirs.model.named_parameters()}
    assert all(g.any() for g in expected.values())
    assert difference(ours.gradients, expected) <= 1e-12


def test_updates_at_every_step_are_spikingjellys():
    model = oracle_net("soft")
    x, y = batch(6, dtype=torch.float64)
    theirs = Oracle(model)
    optimizer = torch.optim.SGD(theirs.model.parameters(), lr=0.5)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    theirs.train(x, y, update)
    ours, method = copy.deepcopy(model).double().train(), OTTT(OTTTOptions(update="per_step"))
    prepared(method, ours, x)
    before = copy.deepcopy(ours.state_dict())
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    method.step(ours, x, y, loss(), update)
    state = theirs.model.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, state[name], rtol=1e-11, atol=1e-14), name
        assert not torch.equal(value, before[name])


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_gradients_of_the_steps_add_up_where_no_update_changes_a_weight(method):
    model = chain(lif(**SOFT))
    per_step_method = method(OTTTOptions(update="per_step"))
    x, y = batch(6, dtype=torch.float64)
    prepared(per_step_method, ours := copy.deepcopy(model).double().train(), x)
    total = {name: torch.zeros_like(p) for name, p in ours.named_parameters()}
    updates = 0

    def update() -> None:
        nonlocal updates
        updates += 1
        for name, parameter in ours.named_parameters():
            total[name] += parameter.grad
            parameter.grad = None

    per_step_method.step(ours, x, y, loss(), update)
    accumulated = gradients(method(), model)
    assert updates == 6
    assert accumulated.updates == 1
    assert difference(total, accumulated.gradients) <= 1e-12


def test_an_update_reaches_the_weights_that_autocast_has_cast():
    model = chain(lif(**SOFT))
    x, y = batch(3)
    outputs = []
    for cache in (True, False):
        ours, method = copy.deepcopy(model).train(), OTTT(OTTTOptions(update="per_step"))
        prepared(method, ours, x)
        optimizer = torch.optim.SGD(ours.parameters(), lr=5.0)

        def update(optimizer: Any = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            outputs.append(method.step(ours, x, y, loss(), update))
    assert torch.equal(outputs[0].loss, outputs[1].loss)


@pytest.mark.parametrize("method", [OTTT, NDOT])
@pytest.mark.parametrize("pool", [avg_pool, max_pool])
def test_saved_bytes_are_flat_in_time(method, pool):
    values = [track(method(), chain(lif(**SOFT), pool), *batch(T)).saved_bytes for T in (2, 4, 8, 16)]
    assert len(set(values)) == 1, values


def test_a_trace_takes_the_place_of_the_saved_input():
    x, y = batch(4)
    # Without pooling, each weight but the first saves one tensor: the spikes for SLTT, the trace for OTTT.
    kept = [track(method, chain(lif(**SOFT), avg_pool), x, y).saved_bytes for method in (SLTT(), OTTT())]
    assert kept[1] <= kept[0]


def test_every_layer_runs_once_forward_and_once_backward():
    class Counting(TorchDispatchMode):
        calls: dict[Any, int] = {}  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls[func] = self.calls.get(func, 0) + 1
            return func(*args, **(kwargs or {}))

    x, y = batch(4)
    model, method = chain(lif(**SOFT)), OTTT()
    prepared(method, model, x)
    with Counting() as counting:
        run(method, model, x, y)
    for operator in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
        assert counting.calls[operator] == 3 * 4


@pytest.mark.parametrize("method", [OTTT(), OTTT(OTTTOptions(update="per_step")), NDOT()])
@pytest.mark.parametrize("autocast", [False, True])
def test_fake_tensors_cost_the_same_bytes(method, autocast):
    x, y = batch(4)
    real = track(method, chain(lif(**SOFT), weight=layer.WSConv2d), x, y, autocast)
    model = chain(lif(**SOFT), weight=layer.WSConv2d)
    with FakeTensorMode() as mode:
        fake = track(type(method)(method.opt), convert(model, mode), mode.from_tensor(x), mode.from_tensor(y), autocast)
    assert fake.timeline == real.timeline
    assert fake.split == real.split


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_autocast_reaches_every_weight(method):
    x, y = batch(4)
    model, instance = chain(lif(**SOFT)), method()
    full = run(instance, prepared(instance, model, x), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run(instance, model, x, y)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() and g.any() for g in low.gradients.values())
    assert 0 < difference(low.gradients, full.gradients) < 0.5


@pytest.mark.parametrize("method", [OTTT, NDOT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(method, dtype):
    model = chain(lif(**SOFT))
    x, y = batch(1, dtype=dtype)
    results = []
    for kind in (method, BPTT):
        ours, instance = copy.deepcopy(model).to(dtype).train(), kind()
        results.append(run(instance, prepared(instance, ours, x), x, y).gradients)
    assert all(g.dtype == dtype for g in results[0].values())
    assert difference(*results) <= 2e-2


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_the_model_is_left_as_it_was_even_after_an_error(method):
    x, y = batch(3)
    model, instance = chain(lif(**SOFT)), method()
    prepared(instance, model, x)
    run(instance, model, x, y)

    def fail() -> None:
        raise RuntimeError("no optimizer")

    with pytest.raises(RuntimeError, match="no optimizer"):
        type(instance)(OTTTOptions(update="per_step")).step(model, x, y, loss(), fail)
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
    plain = instance.finish(model)
    reset_states(plain)
    reference = chain(lif(**SOFT))
    reference.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(x), reference.eval()(x))


def test_frozen_weights():
    model = chain(lif(**SOFT))
    model.stages[1].requires_grad_(False)
    model.stages[2][0].weight.requires_grad_(False)
    ours = gradients(OTTT(), model)
    full = gradients(OTTT(), chain(lif(**SOFT)))
    assert {"stages.1.0.weight", "stages.1.0.bias", "stages.2.0.weight"}.isdisjoint(ours.gradients)
    assert torch.allclose(ours.gradients["stages.0.0.weight"], full.gradients["stages.0.0.weight"], rtol=1e-12)


def test_residual_blocks_are_traced_too():
    block = build(lif(**SOFT), no_norm, middle=lambda c: AddBlock(c, lif(**SOFT), no_norm))
    ours, bptt = gradients(OTTT(), block), gradients(BPTT(), block)
    assert error(ours.gradients["stages.3.0.weight"], bptt.gradients["stages.3.0.weight"]) <= 1e-12


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_other_dimensions_and_geometries(method):
    torch.manual_seed(0)
    stages = [
        [layer.Flatten(2), layer.Conv1d(2, 4, 3, padding=1, stride=2), lif(**SOFT)()],
        [layer.Conv1d(4, 6, 3, dilation=2, groups=2), lif(**SOFT)()],
        [layer.Flatten(), layer.WSLinear(6 * 28, 6), lif(**SOFT)()],
    ]
    model = StagedModel([nn.Sequential(*stage) for stage in stages], layer.Linear(6, 3), "none")
    functional.set_step_mode(model, "m")
    with torch.no_grad():
        for stage in model.stages[:2]:
            stage[-2].weight.mul_(8)
    # At one step every rule is BPTT; over several, OTTT is in the last spiking layer.
    assert difference(gradients(method(), model, T=1).gradients, gradients(BPTT(), model, T=1).gradients) <= 1e-12
    ours, bptt = gradients(method(), model).gradients, gradients(BPTT(), model).gradients
    assert bptt["stages.2.1.weight"].any()
    assert bptt["stages.2.1.gain"].any()
    assert (error(ours["stages.2.1.weight"], bptt["stages.2.1.weight"]) <= 1e-12) == (method is OTTT)
    assert (error(ours["stages.2.1.gain"], bptt["stages.2.1.gain"]) <= 1e-12) == (method is OTTT)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def with_middle(module: Any) -> StagedModel:
    return build(lif(**SOFT), no_norm, middle=lambda c: module)


@pytest.mark.parametrize("method", [OTTT, NDOT])
def test_unsupported_is_explained(method):
    def reason(model: StagedModel, kind: str = "per_step") -> str:
        return method().supports(model, loss(kind))

    assert "per_step loss" in reason(chain(lif()), "time_mean")
    assert "the model's is over_time" in reason(build(lif()))
    assert "several (stages.0.2: 0.5, stages.1.2: 0.75)" in reason(
        build(lif(), no_norm, middle=lambda c: conv(c, c, lif(tau=4.0), no_norm))
    )
    assert "stages.0.2 (ParametricLIFNode): only LIFNode and IFNode" in reason(build(plif(), per_step))
    assert "stages.1 (Own): its parameters are not" in reason(with_middle(Own()))
    transposed = layer.ConvTranspose2d(4, 4, 3, padding=1, step_mode="m")
    assert "stages.1 (ConvTranspose2d): its parameters are not" in reason(with_middle(transposed))
    for settings in ({"padding": "same"}, {"padding": 1, "padding_mode": "circular"}):
        assert "stages.1 (Conv2d): its padding" in reason(with_middle(layer.Conv2d(4, 4, 3, step_mode="m", **settings)))
    weight = layer.Conv2d(4, 4, 3, padding=1, step_mode="m")
    twice = nn.Sequential(weight, lif(**SOFT)(), weight, lif(**SOFT)())
    assert "stages.1.2 (Conv2d) runs twice" in reason(with_middle(twice))
    model = build(lif(**SOFT), no_norm, middle=lambda c: nn.Identity())
    for stage in (model.stages[0], model.stages[3]):
        stage[2] = surrogate.Sigmoid()
    assert "no LIF or IF neuron" in reason(model)
    assert all(reason(net) is None for net in (chain(lif()), chain(integrate()), oracle_net("weight-standardised")))
