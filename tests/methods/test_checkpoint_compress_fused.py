"""Checkpointing with spike compression on fused neurons: exact at every level, and what it saves over torch's neurons."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import conformance
from harness.contracts import StagedModel
from harness.predict import convert
from methods._layout import in_time, neurons
from methods.bptt import BPTT
from methods.bptt_fused import FUSED, BPTTFused, FusedLIFNode
from methods.checkpoint_compress import CheckpointCompress, CheckpointCompressOptions
from methods.checkpoint_compress_fused import CheckpointCompressFused, CheckpointCompressFusedOptions
from tests.methods.nets import batch, build, conv, difference, lif, loss, no_norm, over_time, prepared, run
from tests.methods.test_exactness import NETS, TOLERANCE, compare
from tests.methods.test_levels import LAYOUTS, finest, track, widths_of


def at(level: str, **options: Any) -> Any:
    """A factory of the method at a level."""
    return partial(CheckpointCompressFused, CheckpointCompressFusedOptions(level=level, **options))


def deep() -> StagedModel:
    return build(middle=lambda c: conv(c, c, lif(), over_time))


class Fixed:
    """The method with a layout instead of a plan."""

    def __init__(self, layout: Any) -> None:
        self.layout, self.method = layout, CheckpointCompressFused()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def prepare(self, model: StagedModel, x: Any, objective: Any) -> StagedModel:
        segments = self.layout(model)
        self.method.replay(
            {"widths": widths_of(model, segments), "segments": [asdict(segment) for segment in segments]}
        )
        return self.method.prepare(model, x, objective)


@pytest.mark.parametrize("net", ["lif", "lif-soft-detached", "if", "plif", "per-step-norm", "dropout", "add-blocks"])
@pytest.mark.parametrize("save", ["membrane", "input"])
def test_the_gradient_is_that_of_bptt(net, save):
    for dtype, tolerance in TOLERANCE.items():
        assert compare(at("O1", save=save), NETS[net], dtype) <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("net", ["lif", "lif-soft", "plif", "no-norm", "add-blocks"])
def test_every_layout_is_exact(net, layout):
    assert compare(lambda: Fixed(LAYOUTS[layout]), NETS[net], torch.float64) <= 1e-10


@pytest.mark.parametrize("level", ["O2", "O4"])
def test_every_level_is_exact(level):
    assert compare(at(level), deep, torch.float64) <= 1e-10


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_fused_neurons_run_in_pieces_of_time(chunks):
    x, y = batch(5, dtype=torch.float64)
    reference, model, method = (
        build(lif(), no_norm).double(),
        build(lif(), no_norm).double(),
        Fixed(partial(finest, chunks=chunks)),
    )
    expected, got = run(BPTT(), prepared(BPTT(), reference, x), x, y), run(method, prepared(method, model, x), x, y)
    assert max(segment["chunks"] for segment in method.plan()["segments"]) == chunks
    assert in_time(FusedLIFNode(step_mode="m"))
    assert difference(got.gradients, expected.gradients) <= 1e-12
    assert torch.equal(got.out.logits, expected.out.logits)


@pytest.mark.parametrize("level", ["O1", pytest.param("O3", marks=pytest.mark.slow)])
def test_the_peak_is_lower_than_with_torch_neurons_and_than_fused_neurons_alone(level):
    x, y = batch(8)
    ours = track(at(level)(), deep(), x, y).peak_bytes
    plain = track(CheckpointCompress(CheckpointCompressOptions(level=level)), deep(), x, y).peak_bytes
    fused = track(BPTTFused(), deep(), x, y).peak_bytes
    assert ours < min(plain, fused)


@pytest.mark.parametrize("level", ["O1", pytest.param("O4", marks=pytest.mark.slow)])
def test_a_prediction_costs_the_same_bytes(level):
    x, y = batch()
    method = at(level)()
    real = track(method, deep(), x, y)
    with FakeTensorMode() as mode:
        replayed = at(level)()
        replayed.replay(json.loads(json.dumps(method.plan())))
        fake = track(replayed, convert(deep(), mode), mode.from_tensor(x), mode.from_tensor(y))
    assert (fake.peak_bytes, fake.saved_bytes, fake.split) == (real.peak_bytes, real.saved_bytes, real.split)


def test_the_plan_names_the_neurons():
    x, _ = batch()
    method, model = at("O1", save="input")(), deep()
    prepared(method, model, x)
    assert method.plan()["neurons"] == {"save": "input", "kernel": "torch", "fused_neurons": 3, "left_neurons": {}}
    assert len(neurons(model)) == 3


def test_finish_gives_spikingjellys_neurons_back():
    x, y = batch()
    method, model = at("O1")(), deep()
    keys = list(model.state_dict())
    run(method, prepared(method, model, x), x, y)
    assert {type(node) for node in neurons(model)} == {FUSED[neuron.LIFNode]}
    assert method.finish(model) is model
    assert {type(node) for node in neurons(model)} == {neuron.LIFNode}
    assert list(model.state_dict()) == keys


def test_a_model_without_neurons_to_fuse_is_not_supported():
    reason = CheckpointCompressFused().supports(build(lif(step_mode="s")), loss())
    assert reason is not None
    assert "no neuron that can be fused" in reason


def test_what_it_is_compared_with_has_the_same_neurons():
    assert CheckpointCompressFused.baseline == BPTTFused.name


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O4"])
def test_conformance(level):
    nets = {name: conformance.NETS[name] for name in ("batch norm over T x N", "dropout")}
    results = conformance.check("checkpoint-compress-fused", {"level": level}, nets)
    assert any(result.passed for result in results)
    assert not [result for result in results if result.passed is False]
