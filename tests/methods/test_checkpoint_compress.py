"""Widths: where they come from, and what happens when one is too narrow."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn

from harness.contracts import StagedModel
from methods import compressors
from methods.bptt import BPTT
from methods.checkpoint_compress import CheckpointCompress
from methods.packing import RAW
from tests.methods.nets import AddBlock, Scale, batch, build, conv, difference, lif, loss, over_time, prepared, run


class Gain(nn.Module):
    """Multiplies spikes by a number that a test changes between batches."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def noisy_net() -> StagedModel:
    """Gain in the second stage, dropout and a neuron's state in the head, batch normalisation everywhere."""
    model = build(middle=lambda c: Gain())
    model.stages[0].append(nn.Identity())
    head = [layer.Flatten(step_mode="m"), lif()(), layer.Dropout(0.3, step_mode="m"), nn.Dropout(0.2)]
    model.head = nn.Sequential(*head, layer.Linear(64, 3, step_mode="m"))
    return model


def decided(method: CheckpointCompress) -> dict[str, Any]:
    """The part of the plan that is about widths."""
    return {key: method.plan()[key] for key in ("widths", "width_source", "redone_steps")}


def step_after(first: float, then: float, seed: int = 5) -> tuple[CheckpointCompress, Any, Any]:
    """The widths are settled at gain ``first``; then one step at ``then``, and BPTT's from the same state."""
    x, y = batch(dtype=torch.float64)
    model, reference, method = noisy_net().double(), noisy_net().double(), CheckpointCompress()
    prepared(method, model, x)
    model.stages[1].factor = first
    run(method, model, x, y)
    reference.load_state_dict(model.state_dict())
    model.stages[1].factor = reference.stages[1].factor = then
    got = run(method, model, x, y, seed=seed)
    after = torch.rand(2)
    expected = run(BPTT(), reference.train(), x, y, seed=seed)
    assert torch.equal(after, torch.rand(2)), "random numbers were not drawn exactly once"
    return method, got, expected


@pytest.mark.parametrize(
    ("first", "then", "width"),
    [
        *[(1.0, 3.0, 2), (1.0, 9.0, 4), (3.0, 200.0, 8), (1.0, 256.0, RAW), (1.0, 0.5, RAW), (1.0, -1.0, RAW)],
        *[(0.0, 1.0, 1), (0.0, 2.0, 2), (1.0, float("1e30"), RAW)],
    ],
)
def test_violation_widens_and_redoes_the_step(first, then, width):
    """First 0.0: an all-zero first batch makes everything look binary."""
    method, got, expected = step_after(first, then)
    assert difference(got.gradients, expected.gradients) <= 1e-10
    assert torch.equal(got.out.logits, expected.out.logits)
    assert got.updates == 1
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    plan = method.plan()
    assert plan["widths"][:3] == [RAW, 1, width]
    assert plan["redone_steps"] == (0 if width == 1 else 1)


def test_smaller_values_later_do_not_narrow():
    method, got, expected = step_after(3.0, 1.0)
    assert difference(got.gradients, expected.gradients) <= 1e-10
    assert decided(method) == {"widths": [RAW, 1, 2, 2], "width_source": "measured", "redone_steps": 0}


def test_redo_leaves_no_state_behind():
    x, y = batch()
    model, method = noisy_net(), CheckpointCompress()
    method.replay({"widths": [RAW, 1, 1, 1]})
    prepared(method, model, x)
    model.stages[1].factor = 2.0
    seen: list[int] = []
    model.stages[1].register_forward_hook(lambda *_: seen.append(1))
    run(method, model, x, y)
    assert len(seen) == 3  # forward, redo, recompute
    counts = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [1, 1]
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not [m for stage in model.stages for m in stage.modules() if isinstance(m, base.MemoryModule) and m.v != 0.0]
    assert model.head[1].v == 0.0  # and not at the end of the graph that was thrown away


def test_counters_are_read_once_a_step(monkeypatch):
    x, y = batch()
    model, method = build(), CheckpointCompress()
    prepared(method, model, x)
    run(method, model, x, y)
    reads: list[str] = []
    for name in ("tolist", "item", "__int__", "__bool__", "__float__", "nonzero", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *a, _n=name, _o=original, **k: reads.append(_n) or _o(self, *a, **k)
        )
    events: list[str] = []
    objective = loss()
    objective.on_logits = lambda _: events.append(f"loss after {len(reads)}")
    method.step(model, x, y, objective, lambda: events.append(f"update after {len(reads)}"))
    assert reads == ["tolist"]
    assert events == ["loss after 1", "update after 1"]


def test_rules_need_no_measurement(monkeypatch):
    monkeypatch.setattr(compressors, "narrowest", None)
    x, y = batch()
    model, method = build(middle=lambda c: conv(c, c, lif(), over_time)), CheckpointCompress()
    run(method, prepared(method, model, x), x, y)
    assert decided(method) == {"widths": [RAW, 1, 1, 1], "width_source": "rule", "redone_steps": 0}


def test_unknown_modules_are_measured_on_the_first_batch():
    x, y = batch()
    model, method = build(middle=lambda c: nn.Sequential(*[AddBlock(c, lif(), over_time)] * 4)), CheckpointCompress()
    # The same block four times: its neuron's state is shared inside ONE stage, which is fine.
    prepared(method, model, x)
    assert method.plan()["widths"] == [RAW, 1, RAW, RAW]
    run(method, model, x, y)
    plan = method.plan()
    assert plan["width_source"] == "measured"
    assert plan["widths"][2] in (2, 4)


@pytest.mark.parametrize("factor", [0.5, -2.0])
def test_values_that_are_no_small_integers_stay_raw(factor):
    x, y = batch()
    model, method = build(middle=lambda c: Scale(factor)), CheckpointCompress()
    run(method, prepared(method, model, x), x, y)
    assert method.plan()["widths"][:3] == [RAW, 1, RAW]
    assert method.plan()["redone_steps"] == 0


@pytest.mark.parametrize("before_prepare", [True, False])
def test_replay_takes_a_real_runs_widths(before_prepare):
    x, y = batch()
    real, first = CheckpointCompress(), build()
    run(real, prepared(real, first, x), x, y)
    plan = json.loads(json.dumps(real.plan()))
    method, model = CheckpointCompress(), build()
    if before_prepare:
        method.replay(plan)
    prepared(method, model, x)
    if not before_prepare:
        method.replay(plan)
    run(method, model, x, y)
    assert method.plan() == plan | {"width_source": "replay", "redone_steps": 0}


def test_replay_of_another_models_plan():
    method, model = CheckpointCompress(), build()
    method.replay({"widths": [0, 1]})
    with pytest.raises(ValueError, match="the plan has 2 widths, but the model has 4 values to keep"):
        prepared(method, model, batch()[0])
    with pytest.raises(ValueError, match=r"widths \[3\]; allowed: \(0, 1, 2, 4, 8, 32\)"):
        method.replay({"widths": [0, 3, 1]})


def test_network_input_is_not_copied(monkeypatch):
    x, y = batch()
    kept: dict[int, int] = {}
    original = compressors.pack

    def watch(value: Tensor, width: int, violations: Tensor) -> Any:
        packed = original(value, width, violations)
        kept[len(kept)] = packed.payload.data_ptr()
        return packed

    monkeypatch.setattr(compressors, "pack", watch)
    model, method = build(), CheckpointCompress()
    run(method, prepared(method, model, x), x, y)
    assert kept[0] == x.data_ptr()
    assert len(kept) == 4
