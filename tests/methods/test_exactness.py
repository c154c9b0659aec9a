"""The exact methods against BPTT: gradients, loss, logits, running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn

from methods.bptt import BPTT
from methods.checkpoint import Checkpoint
from methods.checkpoint_compress import CheckpointCompress
from tests.methods.nets import (
    AddBlock,
    Scale,
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

METHODS = [Checkpoint, CheckpointCompress]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

NETS: dict[str, Any] = {
    "lif": lambda: build(lif()),
    "lif-soft": lambda: build(lif(v_reset=None)),
    "lif-detached": lambda: build(lif(detach_reset=True)),
    "lif-soft-detached": lambda: build(lif(v_reset=None, detach_reset=True, decay_input=False)),
    "if": lambda: build(integrate()),
    "if-soft-detached": lambda: build(integrate(v_reset=None, detach_reset=True)),
    "plif": lambda: build(plif()),
    "plif-soft": lambda: build(plif(v_reset=None, detach_reset=True)),
    "per-step-norm": lambda: build(lif(), per_step),
    "no-norm": lambda: build(lif(), no_norm),
    "avg-pool": lambda: build(middle=lambda c: layer.AvgPool2d(3, stride=1, padding=1, step_mode="m")),
    "dropout": lambda: build(middle=lambda c: conv(c, c, lif(), over_time, layer.Dropout(0.4, step_mode="m"))),
    "torch-dropout": lambda: build(middle=lambda c: conv(c, c, lif(), over_time, nn.Dropout(0.4))),
    "bare-dropout": lambda: build(middle=lambda c: nn.Dropout(0.4)),
    "add-blocks": lambda: build(
        middle=lambda c: nn.Sequential(*[AddBlock(c, lif(), over_time) for _ in range(3)], AddBlock(c, lif(), per_step))
    ),
    "views": lambda: build(middle=lambda c: nn.Identity()),
    "fractions": lambda: build(middle=lambda c: Scale(0.3)),
    "negative": lambda: build(middle=lambda c: Scale(-1.0)),
}


def compare(method_type: Any, build_net: Any, dtype: torch.dtype, kind: str = "per_step") -> float:
    x, y = batch(dtype=dtype)
    model = build_net().to(dtype)
    reference = copy.deepcopy(model)
    expected = run(BPTT(), prepared(BPTT(), reference, x), x, y, loss(kind))
    method = method_type()
    got = run(method, prepared(method, model, x), x, y, loss(kind))
    assert got.updates == expected.updates == 1
    assert torch.equal(got.out.loss, expected.out.loss)
    assert torch.equal(got.out.logits, expected.out.logits)
    assert not got.out.loss.requires_grad
    assert not got.out.logits.requires_grad
    assert got.buffers.keys() == expected.buffers.keys()
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    assert all(g.dtype == dtype for g in got.gradients.values())
    return difference(got.gradients, expected.gradients)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_is_that_of_bptt(method, net, dtype):
    assert compare(method, NETS[net], dtype) <= TOLERANCE[dtype]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("net", ["lif", "plif", "add-blocks", "torch-dropout"])
def test_half_precision_models(method, net, dtype):
    # The same operators on the same numbers: equal even here, up to the order of a sum of gradients.
    assert compare(method, NETS[net], dtype) <= 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_time_mean_loss(method):
    assert compare(method, NETS["lif"], torch.float64, "time_mean") <= 1e-10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("net", ["lif", "add-blocks"])
def test_autocast(method, net, dtype):
    x, y = batch()
    results = []
    for kind in (BPTT, method):
        model, instance = NETS[net](), kind()
        prepared(instance, model, x)
        with torch.autocast("cpu", dtype=dtype):
            results.append(run(instance, model, x, y))
    expected, got = results
    assert torch.equal(got.out.logits, expected.out.logits)
    assert difference(got.gradients, expected.gradients) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_many_steps_of_training_stay_equal(method):
    x, y = batch(dtype=torch.float64)
    weights = []
    for kind in (BPTT, method):
        model, instance = build().double(), kind()
        prepared(instance, model, x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(5):
            step = run(instance, model, x + seed, y, seed=seed)
            for name, parameter in model.named_parameters():
                parameter.grad = step.gradients[name]
            optimizer.step()
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][key], weights[1][key], rtol=1e-9, atol=1e-12) for key in weights[0])


@pytest.mark.parametrize("method", METHODS)
def test_non_contiguous_input(method):
    x, y = batch(dtype=torch.float64)
    gradients = []
    for view in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.repeat_interleave(2, -1)[..., ::2]):
        model, instance = build().double(), method()
        gradients.append(run(instance, prepared(instance, model, x), view, y).gradients)
    assert difference(gradients[1], gradients[0]) <= 1e-12
    assert difference(gradients[2], gradients[0]) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_frozen_stages(method):
    x, y = batch(dtype=torch.float64)
    gradients = []
    for kind in (BPTT, method):
        model, instance = build().double(), kind()
        model.stages[0].requires_grad_(False)
        model.stages[3].requires_grad_(False)
        gradients.append(run(instance, prepared(instance, model, x), x, y).gradients)
    assert difference(gradients[1], gradients[0]) <= 1e-10
    assert not any(name.startswith(("stages.0", "stages.3")) for name in gradients[1])


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_network_input_only_on_request(method):
    x, y = batch(dtype=torch.float64)
    gradients = []
    for kind in (BPTT, method):
        model, instance, mine = build().double(), kind(), x.clone().requires_grad_()
        run(instance, prepared(instance, model, x), mine, y)
        gradients.append(mine.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)
    plain = x.clone()
    instance, model = method(), build().double()
    made: list[Any] = []
    model.stages[0][0].register_forward_pre_hook(lambda _module, args: made.append(args[0].requires_grad))
    run(instance, prepared(instance, model, x), plain, y)
    assert made == [False, False]
    assert plain.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_keys_and_evaluation_are_unchanged(method):
    x, y = batch()
    model, reference, instance = build(), build(), method()
    keys = list(model.state_dict())
    prepared(instance, model, x)
    run(instance, model, x, y)
    plain = instance.finish(model)
    assert list(plain.state_dict()) == keys
    reference.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), reference.eval()(x))
