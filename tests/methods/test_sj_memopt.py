"""The peer as it behaves: what it keeps, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel
from harness.predict import convert
from methods.bptt import BPTT
from methods.sj_memopt import SJMemopt, SJMemoptOptions
from tests.methods.nets import AddBlock, batch, build, conv, difference, lif, loss, over_time, per_step, prepared, run
from tests.methods.test_checkpoint_compress import Gain
from tests.methods.test_levels import track

WRAPPER = "_checkpoint_wrapped_module."
NETS: dict[str, Any] = {
    "flat": lambda: build(middle=lambda c: conv(c, c, lif(), over_time)),
    "per-step": lambda: build(lif(), per_step),
    "dropout": lambda: build(middle=lambda c: conv(c, c, lif(), over_time, layer.Dropout(0.4, step_mode="m"))),
}


def bare(values: dict[str, Any]) -> dict[str, Any]:
    """Torch's wrapper shows in the names of parameters, though not in the state_dict's keys."""
    return {name.replace(WRAPPER, ""): value for name, value in values.items()}


def compare(model: StagedModel, reference: StagedModel, method: Any = None) -> float:
    x, y = batch(dtype=torch.float64)
    if method is None:
        method = SJMemopt()
        prepared(method, model, x)
    got = run(method, model, x, y)
    expected = run(BPTT(), reference.train(), x, y)
    buffers = bare(got.buffers)
    assert all(torch.allclose(buffers[name], value, rtol=1e-12) for name, value in expected.buffers.items())
    return difference(bare(got.gradients), expected.gradients)


@pytest.mark.parametrize("net", NETS)
def test_gradient_and_statistics_are_those_of_bptt(net):
    assert compare(NETS[net]().double(), NETS[net]().double()) <= 1e-10


def test_every_stage_is_wrapped_and_binary_inputs_are_packed():
    x, _ = batch()
    method, model = (
        SJMemopt(),
        build(middle=lambda c: nn.Sequential(*[AddBlock(c, lif(), over_time) for _ in range(3)])),
    )
    keys, kinds = list(model.state_dict()), [type(stage) for stage in model.stages]
    prepared(method, model, x)
    wrapped = method.plan()["wrapped"]
    assert [entry["module"] for entry in wrapped] == [f"stages.{i}" for i in range(4)]
    assert [entry["packed"] for entry in wrapped] == [False, True, False, False]  # the data, spikes, sums, sums
    assert list(model.state_dict()) == keys
    finished = method.finish(model)
    assert list(dict(finished.named_parameters())) == [k for k in keys if k in dict(finished.named_parameters())]
    assert [type(stage) for stage in finished.stages] == kinds


def test_a_value_that_was_binary_in_the_example_only_is_changed_silently():
    """The library's known defect, which :mod:`methods.checkpoint_compress` has not: if this fails, it is mended."""
    x, _ = batch(dtype=torch.float64)
    model, reference = (build(middle=lambda c: Gain()).double() for _ in range(2))
    model.stages[2] = nn.Sequential(layer.Conv2d(4, 4, 2, 2, step_mode="m"))
    reference.stages[2] = nn.Sequential(layer.Conv2d(4, 4, 2, 2, step_mode="m")).double()
    model.stages[2].double()
    reference.load_state_dict(model.state_dict())
    method = SJMemopt()
    prepared(method, model, x)
    assert compare(model, reference, method) <= 1e-10
    for net in (model, reference):
        next(m for m in net.modules() if isinstance(m, Gain)).factor = 3.0
    reference.load_state_dict(bare(model.state_dict()))
    x, y = batch(dtype=torch.float64)
    got, expected = run(method, model, x, y), run(BPTT(), reference, x, y)
    assert difference(bare(got.gradients), expected.gradients) > 0.01
    assert not torch.allclose(got.out.logits, expected.out.logits)  # the forward runs on what was unpacked


@pytest.mark.parametrize("level", [2, 3, 4])
def test_levels_that_need_cuda_say_so(level):
    method = SJMemopt(SJMemoptOptions(level=level))
    assert method.supports(build(), loss()) == (
        f"level {level} searches by the peak of CUDA's allocator, but the model is on cpu"
    )
    with FakeTensorMode() as mode:
        x = mode.from_tensor(batch()[0])
        with pytest.raises(ValueError, match=f"level {level} measures on CUDA: its prediction needs a replayed plan"):
            method.prepare(convert(build(), mode), x, loss())


def test_prediction_costs_the_same_bytes():
    x, y = batch()
    real_method = SJMemopt()
    real = track(real_method, NETS["flat"](), x, y)
    for replay in (False, True):
        model, method = NETS["flat"](), SJMemopt()
        if replay:
            method.replay(json.loads(json.dumps(real_method.plan())))
        with FakeTensorMode() as mode:
            fake = track(method, convert(model, mode), mode.from_tensor(x), mode.from_tensor(y))
        assert (fake.peak_bytes, fake.saved_bytes, fake.split) == (real.peak_bytes, real.saved_bytes, real.split)
        assert method.plan() == real_method.plan()


def test_replay_takes_pieces_of_time_too():
    x, _ = batch(dtype=torch.float64)
    wrapped = [
        {"module": "stages.0.2", "packed": False, "chunks": 2},
        {"module": "stages.3", "packed": True, "chunks": 1},
    ]
    method, model = SJMemopt(SJMemoptOptions(level=4)), NETS["flat"]().double()
    method.replay({"wrapped": wrapped})
    method.prepare(model.train(), x, loss())
    assert method.plan()["wrapped"] == wrapped
    assert compare(model, NETS["flat"]().double(), method) <= 1e-10
