"""What the methods store, counted by the ledger; real and fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contracts import StagedModel
from harness.ledger import BLOCK, Ledger, LedgerReport
from harness.predict import convert
from methods.bptt import BPTT
from methods.checkpoint import Checkpoint
from methods.checkpoint_compress import CheckpointCompress
from methods.sltt import SLTT
from tests.methods.nets import AddBlock, batch, build, conv, lif, loss, over_time, per_step, prepared, run

METHODS = [BPTT, Checkpoint, CheckpointCompress, SLTT]


def deep(norm: Any = per_step) -> StagedModel:
    return build(
        norm=norm, middle=lambda c: nn.Sequential(conv(c, c, lif(), norm), AddBlock(c, lif(), norm), nn.Identity())
    )


def flat(norm: Any = over_time) -> StagedModel:
    """All stages binary by rule."""
    return build(norm=norm, middle=lambda c: conv(c, c, lif(), norm))


class Closed(AddBlock):
    """A block of which nothing is known beforehand: it holds a parameter of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, lif(), per_step)
        self.own = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.own.detach()


def track(method: Any, model: StagedModel, x: Any, y: Any, autocast: bool = False) -> LedgerReport:
    """The second of two steps."""
    prepared(method, model, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run(method, model, x, y)
        for module in model.modules():
            if hasattr(module, "reset"):
                module.reset()
        ledger, objective = Ledger(model), loss()
        ledger.register("inputs", [x, y])
        objective.on_logits = ledger.mark_output
        torch.manual_seed(0)
        with ledger:
            method.step(model, x, y, objective, lambda: None)
    return ledger.report()


def saved(method: Any, net: Any, T: int) -> int:
    result = track(method(), net(), *batch(T)).saved_bytes
    assert result is not None
    return result


def test_saved_bytes_of_sltt_are_flat_in_time():
    values = {T: saved(SLTT, deep, T) for T in (2, 4, 8, 16)}
    assert len(set(values.values())) == 1, values


def test_saved_bytes_of_the_exact_methods_grow_in_their_order():
    for T in (4, 16):
        plain, kept, packed = (saved(method, flat, T) for method in (BPTT, Checkpoint, CheckpointCompress))
        assert packed < kept / 2 < plain / 4


def test_saved_bytes_of_compression_are_the_packed_inputs():
    T, N = 8, 3
    spikes = [T * N * 4 * 8 * 8, T * N * 4 * 8 * 8, T * N * 4 * 4 * 4]  # into stages 1, 2 and 3; stage 0 has the data
    packed = sum(-(-count // 8 // BLOCK) * BLOCK for count in spikes)
    head = T * N * 64 * 4  # the read-out is no segment: autograd saves its input
    rest = saved(CheckpointCompress, flat, T) - packed - head
    assert 0 <= rest <= 5 * BLOCK  # the counters, and what the loss saves


def test_peak_is_lower_too():
    def long() -> StagedModel:
        model = flat()
        model.stages = nn.Sequential(*[conv(4 if i else 2, 4, lif(), over_time) for i in range(6)], *model.stages[2:])
        return model

    x, y = batch(16)
    peaks = [track(method(), long(), x, y).activation_bytes for method in (BPTT, Checkpoint, CheckpointCompress)]
    assert peaks[1] < 0.6 * peaks[0]
    assert peaks[2] < 0.75 * peaks[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("net", ["deep", "dropout"])
def test_fake_tensors_cost_the_same_bytes(method, autocast, net):
    nets = {"deep": deep, "dropout": lambda: build(norm=per_step, middle=lambda c: layer.Dropout(0.5, step_mode="m"))}
    x, y = batch(4)
    real_method = method()
    real = track(real_method, nets[net](), x, y, autocast)
    model = nets[net]()
    with FakeTensorMode() as mode:
        fake_method = method()
        fake_method.replay(real_method.plan())
        inputs = mode.from_tensor(x), mode.from_tensor(y)
        fake = track(fake_method, convert(model, mode), *inputs, autocast)
    assert fake.saved_bytes == real.saved_bytes
    assert fake.peak_bytes == real.peak_bytes
    assert fake.split == real.split


def test_prediction_without_a_replay_keeps_unknown_inputs_raw():
    x, y = batch(4)
    made = [build(norm=per_step, middle=lambda c: nn.Sequential(Closed(c), nn.Identity())) for _ in range(2)]
    real = track(CheckpointCompress(), made[0], x, y)
    with FakeTensorMode() as mode:
        method = CheckpointCompress()
        fake = track(method, convert(made[1], mode), mode.from_tensor(x), mode.from_tensor(y))
    assert method.plan()["width_source"] == "rule"
    assert fake.saved_bytes is not None
    assert real.saved_bytes is not None
    assert fake.saved_bytes > real.saved_bytes
