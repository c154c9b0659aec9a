"""ELL, FELL and BELL: what each layer learns, and from what; the parts that local methods share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel, reset_states
from harness.predict import convert
from methods._local import AUXILIARIES, Classifier, layers_of, partition
from methods.bell import BELL
from methods.bptt import BPTT
from methods.decolle import DECOLLE
from methods.ell import ELL, ELLOptions
from methods.fell import FELL
from methods.sltt import SLTT
from methods.stdl import STDL
from tests.methods.nets import (
    Step,
    batch,
    build,
    conv,
    difference,
    lif,
    loss,
    no_norm,
    over_time,
    per_step,
    prepared,
    run,
)
from tests.methods.test_memory import track

SOFT: dict[str, Any] = {"v_reset": None, "detach_reset": True}
LOCAL = [ELL, FELL, BELL, DECOLLE, STDL]


def chain(node: Any = None, norm: Any = no_norm, pool: Any = layer.AvgPool2d) -> StagedModel:
    """Three layers of one convolution; the middle one pools. Weights are large, so that all of them fire."""
    node = node or lif(**SOFT)
    model = build(node, norm, middle=lambda c: conv(c, c, node, norm, pool(2, 2, step_mode="m")))
    model.head[1] = layer.Linear(4 * 2 * 2, 3, step_mode="m")
    with torch.no_grad():
        for index in (0, 1, 3):
            model.stages[index][0].weight.mul_(4)
    return model.double()


def gradients(method: Any, model: StagedModel, T: int = 5) -> dict[str, Tensor]:
    x, y = batch(T, dtype=torch.float64)
    return run(method, prepared(method, model, x), x, y).gradients


def test_layers_are_stages_with_parameters_and_the_stages_after_them():
    pool = layer.MaxPool2d(2, step_mode="m")
    model = build()
    assert layers_of(model) == [range(0, 1), range(1, 3), range(3, 4)]
    model.stages = nn.Sequential(pool, *model.stages, pool)
    assert layers_of(model) == [range(0, 2), range(2, 4), range(4, 6)]
    model.stages = nn.Sequential(pool)
    assert layers_of(model) == []
    assert ELL().supports(model, loss()) == "no stage of the model has parameters"


def test_partition_is_even_and_complete():
    assert partition(7, 3) == [range(0, 3), range(3, 5), range(5, 7)]
    for layers in range(1, 12):
        for parts in range(1, layers + 1):
            runs = partition(layers, parts)
            assert [n for run_ in runs for n in run_] == list(range(layers))
            assert {len(run_) for run_ in runs} <= {layers // parts, -(-layers // parts)}
    with pytest.raises(ValueError, match="cannot cut 2 layers into 3 parts"):
        partition(2, 3)


@pytest.mark.parametrize(
    ("sample", "features", "grid"),
    [
        ((4, 8, 8), 1, (1, 1)),
        ((4, 8, 8), 4, (1, 1)),
        ((4, 8, 8), 100, (5, 5)),
        ((4, 8, 2), 30, (3, 2)),
        ((4, 8, 8), None, (8, 8)),
        ((4, 6), 12, (3,)),
        ((9,), 1, ()),
    ],
)
def test_classifier_pools_to_at_most_so_many_features(sample, features, grid):
    head = Classifier(sample, 3, features, "m")
    assert head.grid == grid
    x = torch.rand(2, 5, *sample)
    out = head(x)
    assert out.shape == (2, 5, 3)
    head.step_mode = "s"
    assert torch.allclose(head(x[1]), out[1], atol=1e-6)
    if features in (1, 4) and len(sample) > 1:
        assert torch.allclose(head.linear(x.flatten(3).mean(-1)), out, atol=1e-6)


def alone(model: StagedModel, number: int) -> StagedModel:
    """One layer of a prepared model with its read-out."""
    stages = layers_of(model)[number]
    tail = [*getattr(model, AUXILIARIES), model.head][number]
    net = StagedModel(list(copy.deepcopy(model.stages))[stages.start : stages.stop], copy.deepcopy(tail), "per_step")
    functional.set_step_mode(net, "m")
    return net


def with_inputs(method: Any, model: StagedModel, T: int = 5) -> tuple[Step, list[Tensor], list[StagedModel]]:
    """One step; the input of each layer over time; each layer on its own, as it was before."""
    x, y = batch(T, dtype=torch.float64)
    prepared(method, model, x)
    count = len(layers_of(model))
    nets = [alone(model, number) for number in range(count)]
    seen: list[list[Tensor]] = [[] for _ in range(count)]
    for stages, into in zip(layers_of(model), seen, strict=True):
        stage = model.stages[stages.start]
        stage.register_forward_pre_hook(lambda _module, args, into=into: into.append(args[0].clone()))
    step = run(method, model, x, y)
    inputs = [torch.stack(found) if len(found) == T else found[0] for found in seen]
    return step, inputs, nets


def of_layer(model: StagedModel, found: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """A layer's gradients and its read-out's, named as in :func:`alone`."""
    stages = layers_of(model)[number]
    renamed = {f"stages.{n}": f"stages.{n - stages.start}" for n in stages}
    renamed["head" if number == len(layers_of(model)) - 1 else f"{AUXILIARIES}.{number}"] = "head"
    return {
        new + key[len(old) :]: value
        for old, new in renamed.items()
        for key, value in found.items()
        if key.startswith(f"{old}.")
    }


@pytest.mark.parametrize(("method", "inside"), [(ELL, SLTT), (BELL, BPTT)])
@pytest.mark.parametrize("norm", [no_norm, per_step])
def test_each_layer_with_its_classifier_is_a_net_of_its_own(method, inside, norm):
    model = chain(norm=norm)
    got, inputs, nets = with_inputs(method(), model)
    _, y = batch(5)
    assert len(nets) == 3
    for number, (x, net) in enumerate(zip(inputs, nets, strict=True)):
        assert not x.requires_grad
        other = inside()
        expected = run(other, prepared(other, net, x), x, y)
        assert difference(of_layer(model, got.gradients, number), expected.gradients) <= 1e-15
    assert torch.allclose(got.out.loss, expected.out.loss, rtol=1e-14)
    assert torch.allclose(got.out.logits, expected.out.logits, rtol=1e-14)


def test_bell_takes_statistics_over_time_and_a_time_mean_loss():
    model = chain(norm=over_time)
    x, y = batch(4, dtype=torch.float64)
    method = BELL()
    assert method.supports(model, loss("time_mean")) is None
    first = alone(method.prepare(model.train(), x, loss()), 0)
    got = run(method, model, x, y, loss("time_mean"))
    expected = run(BPTT(), first.train(), x, y, loss("time_mean"))
    assert difference(of_layer(model, got.gradients, 0), expected.gradients) <= 1e-15
    assert "time_mean" in str(ELL().supports(chain(norm=per_step), loss("time_mean")))
    assert "over_time" in str(ELL().supports(chain(norm=over_time), loss()))


def weights(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if key.startswith("stages") and key.endswith("weight")}


def test_forward_eligibility_is_bptt_inside_a_layer_with_soft_detached_reset():
    torch.manual_seed(1)
    fell, bell, ell = (gradients(method(), chain()) for method in (FELL, BELL, ELL))
    assert difference(weights(fell), weights(bell)) <= 1e-12
    assert difference(weights(ell), weights(bell)) > 0.1
    for name in fell:  # the read-outs have no memory: there nothing differs
        if name.startswith((AUXILIARIES, "head")):
            assert torch.allclose(fell[name], ell[name], rtol=1e-12)
            assert torch.allclose(fell[name], bell[name], rtol=1e-12)


def test_forward_eligibility_is_biased_with_a_hard_reset_and_has_no_bias_trace():
    node = lif(detach_reset=False)
    fell, bell = (gradients(method(), chain(node)) for method in (FELL, BELL))
    assert difference(weights(fell), weights(bell)) > 1e-3
    fell, ell = (gradients(method(), chain()) for method in (FELL, ELL))
    assert torch.equal(fell["stages.1.0.bias"], ell["stages.1.0.bias"])


@pytest.mark.parametrize("method", LOCAL)
def test_what_a_part_learns_does_not_depend_on_what_comes_after_it(method):
    x, y = batch(4, dtype=torch.float64)
    whole = method()
    model = prepared(whole, chain(norm=per_step), x)
    cut = copy.deepcopy(whole), copy.deepcopy(model)
    got = run(whole, model, x, y).gradients
    shorter = method()
    torch.manual_seed(0)
    other = prepared(shorter, chain(norm=per_step), x)
    other.load_state_dict(cut[1].state_dict())
    shorter._parts = shorter._parts[:1]
    first = run(shorter, other, x, y).gradients
    assert first
    assert all(torch.equal(got[name], value) for name, value in first.items())
    changed = method()
    other = prepared(changed, chain(norm=per_step), x)
    other.load_state_dict(cut[1].state_dict())
    with torch.no_grad():
        other.head[1].weight.normal_()
        other.stages[3][0].weight.normal_()
    rest = run(changed, other, x, y).gradients
    assert not torch.equal(rest["head.1.weight"], got["head.1.weight"])
    assert all(torch.equal(rest[name], value) for name, value in first.items())


@pytest.mark.parametrize("method", [ELL, FELL])
def test_updates_once_or_at_every_step(method):
    x, y = batch(5, dtype=torch.float64)
    counts = []
    for update in ("accumulated", "per_step"):
        instance = method(ELLOptions(update=update))
        counts.append(run(instance, prepared(instance, chain(norm=per_step), x), x, y).updates)
    assert counts == [1, 5]


@pytest.mark.parametrize("method", LOCAL)
def test_read_outs_are_trained_with_the_model_and_dropped_by_finish(method):
    x, y = batch(4)
    model = build(norm=per_step)
    keys = list(model.state_dict())
    instance = method()
    prepared(instance, model, x)
    names = {name for name, _ in model.named_parameters()} - set(keys)
    assert names
    assert all(name.startswith(f"{AUXILIARIES}.") for name in names)
    got = run(instance, model, x, y).gradients
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(got) == trained
    assert trained >= {key for key in keys if key.endswith(("weight", "bias"))}
    plain = instance.finish(model)
    assert list(plain.state_dict()) == keys
    assert all(getattr(module, "step_mode", "m") == "m" for module in plain.modules())
    if method is not DECOLLE:
        with torch.no_grad():
            reset_states(plain)
            assert torch.equal(plain.eval()(x), reference(plain).eval()(x))


def reference(trained: nn.Module) -> nn.Module:
    model = build(norm=per_step)
    model.load_state_dict(trained.state_dict())
    return model


@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("autocast", [False, True])
def test_fake_tensors_cost_the_same_bytes(method, autocast):
    x, y = batch(4)
    real = track(method(), build(norm=per_step), x, y, autocast)
    model = build(norm=per_step)
    with FakeTensorMode() as mode:
        fake = track(method(), convert(model, mode), mode.from_tensor(x), mode.from_tensor(y), autocast)
    assert fake.peak_bytes == real.peak_bytes
    assert fake.split == real.split
    assert fake.saved_bytes == real.saved_bytes


@pytest.mark.parametrize("method", [ELL, FELL, DECOLLE, STDL])
def test_saved_bytes_are_flat_in_time(method):
    saved = {T: track(method(), build(norm=per_step), *batch(T)).saved_bytes for T in (2, 5, 16)}
    assert len(set(saved.values())) == 1, saved


def test_bell_stores_one_layer_over_time():
    for T in (4, 16):
        bell, bptt = (track(method(), build(norm=per_step), *batch(T)).saved_bytes for method in (BELL, BPTT))
        assert bell is not None
        assert bptt is not None
        assert bell < 0.75 * bptt


@pytest.mark.parametrize("method", LOCAL)
def test_frozen_layers_get_no_gradient(method):
    x, y = batch(4, dtype=torch.float64)
    model = chain(norm=per_step)
    model.stages[0].requires_grad_(False)
    instance = method()
    prepared(instance, model, x)
    getattr(model, AUXILIARIES)[0].requires_grad_(False)
    found = run(instance, model, x, y).gradients
    assert found
    assert not any(name.startswith(("stages.0", f"{AUXILIARIES}.0")) for name in found) or method is STDL


@pytest.mark.parametrize("method", LOCAL)
def test_refuses_what_it_cannot_take_apart(method):
    class Skipping(StagedModel):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = Skipping(build(norm=per_step).stages, build().head, "per_step")
    assert "overrides StagedModel.forward" in str(method().supports(model, loss()))
    taken = build(norm=per_step)
    taken.add_module(AUXILIARIES, nn.Identity())
    assert "has a submodule local_auxiliaries already" in str(method().supports(taken, loss()))
