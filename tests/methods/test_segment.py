"""A recompute leaves no trace, and sees what the forward saw."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn

from harness.contracts import StagedModel
from methods import _entry
from methods._entry import Entry
from methods._segment import segmented_forward, unsegmentable
from methods.bptt import BPTT
from methods.checkpoint import Checkpoint
from methods.checkpoint_compress import CheckpointCompress
from methods.packing import RAW, pack
from tests.methods.nets import AddBlock, Scale, batch, build, conv, difference, lif, loss, over_time, prepared, run

METHODS = [Checkpoint, CheckpointCompress]


def raw(index: int, x: Tensor) -> Any:
    return pack(x, RAW)


def entries(model: StagedModel, x: Tensor) -> list[Entry]:
    """The entries of all segments of one forward."""
    logits, found = segmented_forward(model, x, raw), []
    node = logits.grad_fn  # before torch 2.13 a node does not keep its graph alive: the logits do
    while node is not None:
        if hasattr(node, "entry"):
            found.append(node.entry)
        following = [edge for edge, _ in node.next_functions if edge is not None]
        node = next((edge for edge in following if "AccumulateGrad" not in edge.name()), None)
    return found[::-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_updated_once(method, momentum):
    x, y = batch()
    model, instance = build(), method()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    reference = copy.deepcopy(model)
    got, expected = run(instance, prepared(instance, model, x), x, y), run(BPTT(), reference.train(), x, y)
    counts = [value for name, value in got.buffers.items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [1, 1, 1]
    assert all(torch.equal(got.buffers[name], value) for name, value in expected.buffers.items())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("method", METHODS)
def test_normalisation_in_evaluation_mode_keeps_using_running_statistics(method):
    x, y = batch(dtype=torch.float64)
    results = []
    for kind in (BPTT, method):
        model, instance = build().double(), kind()
        prepared(instance, model, x)
        model.stages[3].eval()
        results.append(run(instance, model, x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10


class Power(nn.Module):
    """One power iteration a forward, as spectral normalisation does: the result depends on a buffer that it updates."""

    def __init__(self, replace: bool) -> None:
        super().__init__()
        self.replace = replace
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("u", torch.ones(4))
        self.register_buffer("constant", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            new = nn.functional.normalize(self.weight @ self.u, dim=0)
            if self.replace:
                self.u = new
            else:
                self.u.copy_(new)
        return x * (self.u.clone() @ self.weight @ self.u.clone())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("replace", [True, False])
def test_other_buffers_are_updated_once_and_recomputed_from_their_old_value(method, replace):
    x, y = batch(dtype=torch.float64)
    results = []
    for kind in (BPTT, method):
        model, instance = build(middle=lambda c: Power(replace)).double(), kind()
        results.append(run(instance, prepared(instance, model, x), x, y))
    assert difference(results[1].gradients, results[0].gradients) <= 1e-10
    assert torch.equal(results[1].buffers["stages.1.u"], results[0].buffers["stages.1.u"])


def test_only_changed_buffers_are_kept():
    model = build(middle=lambda c: Power(False))
    kept = [[name for _, name, *_ in entry._buffers._values] for entry in entries(model, batch()[0])]
    assert kept == [[], ["u"], [], []]


class Counter(nn.Module):
    """Has a state that SpikingJelly does not know of."""

    calls = 0
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x * 2
        return self.last + 1


def test_attributes_of_foreign_modules_are_those_of_the_forward():
    x, y = batch()
    model, method = build(middle=lambda c: Counter()), Checkpoint()
    run(method, prepared(method, model, x), x, y)
    assert model.stages[1].calls == 1
    assert not model.stages[1].last.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_membranes_are_neither_kept_alive_nor_attached_to_a_graph(method):
    x, y = batch()
    model, instance = build(), method()
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.store_v_seq = True
    run(instance, prepared(instance, model, x), x, y)
    for stage in model.stages:
        for module in stage.modules():
            if isinstance(module, base.MemoryModule):
                assert module.v == 0.0
                assert module.v_seq.shape[0] == len(x)
                assert not module.v_seq.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_membranes_that_are_not_reset_are_where_the_recompute_starts(method):
    x, y = batch(dtype=torch.float64)
    gradients = []
    for kind in (BPTT, method):
        model, instance = build().double(), kind()
        prepared(instance, model, x)
        node = model.stages[0][2]
        node.set_reset_value("v", torch.full((3, 4, 8, 8), 0.4, dtype=torch.float64))
        gradients.append(run(instance, model, x, y).gradients)
    assert difference(gradients[1], gradients[0]) <= 1e-10


def test_a_forward_in_between_does_not_disturb_the_recompute():
    x, _ = batch(dtype=torch.float64)
    gradients = []
    for disturb in (False, True):
        model = dropout_net().double().train()
        torch.manual_seed(0)
        logits = segmented_forward(model, x, raw)
        if disturb:
            with torch.no_grad():
                model(x)
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert difference(*gradients) <= 1e-12


def test_recomputed_output_is_dropped_before_the_backward_runs():
    model, method = build(), Checkpoint()
    x, y = batch()
    outputs: list[weakref.ref[Tensor]] = []
    model.stages[0].register_forward_hook(lambda _module, _args, out: outputs.append(weakref.ref(out)))
    alive: list[bool] = []
    weight = model.stages[0][0].weight
    weight.register_post_accumulate_grad_hook(lambda _: alive.append(outputs[-1]() is not None))
    run(method, prepared(method, model, x), x, y)
    assert len(outputs) == 2
    assert alive == [False]


def test_stages_that_compute_nothing_are_no_segments():
    model = build(middle=lambda c: nn.Identity())
    assert len(entries(model, batch()[0])) == 3


def dropout_net() -> StagedModel:
    return build(middle=lambda c: conv(c, c, lif(), over_time, layer.Dropout2d(0.5, step_mode="m"), nn.Dropout(0.5)))


def test_random_states_are_kept_by_segments_that_draw_and_no_others(monkeypatch):
    read: list[Any] = []
    original = _entry._random_states
    monkeypatch.setattr(_entry, "_random_states", lambda device: read.append(device) or original(device))
    kept = [list(entry._random) for entry in entries(dropout_net(), batch()[0])]
    assert kept == [[], [torch.device("cpu")], [], []]
    assert set(read) == {torch.device("cpu")}


@pytest.mark.parametrize("method", METHODS)
def test_mask_of_the_recompute_is_that_of_the_forward(method):
    x, y = batch()
    model, instance = dropout_net(), method()
    outputs: list[Tensor] = []
    model.stages[1].register_forward_hook(lambda _module, _args, out: outputs.append(out.detach().clone()))
    run(instance, prepared(instance, model, x), x, y)
    assert len(outputs) == 2
    assert torch.equal(outputs[0], outputs[1])
    assert (outputs[0] == 0).any()
    assert (outputs[0] != 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_random_stream_goes_on_as_after_bptt(method):
    x, y = batch()
    after = []
    for kind in (BPTT, method):
        model, instance = dropout_net(), kind()
        model.head.insert(0, nn.Dropout(0.1))  # draws after the segment: its recompute must not turn the clock back
        run(instance, prepared(instance, model, x), x, y)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_second_backward_is_refused():
    x, _ = batch()
    logits = segmented_forward(build().train(), x, raw)
    logits.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward through a checkpointed stage"):
        logits.sum().backward()


def test_change_of_a_kept_input_in_place_is_noticed():
    model = build(middle=lambda c: nn.Sequential(Scale(2.0), nn.ReLU(inplace=True)))
    model.stages[2] = nn.Sequential(nn.ReLU(inplace=True), model.stages[2])
    with pytest.raises(RuntimeError, match="modified in place after it had been kept"):
        segmented_forward(model, batch()[0], raw).sum().backward()


def test_autocast_casts_no_weight_for_longer_than_a_stage():
    x, y = batch()
    model, method = build(), Checkpoint()
    prepared(method, model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen: list[bool] = []
        model.stages[1].register_forward_hook(lambda *_: seen.append(torch.is_autocast_cache_enabled()))
        run(method, model, x, y)
        assert seen == [False, False]
        assert torch.is_autocast_cache_enabled()


class OwnForward(StagedModel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize("method", METHODS)
def test_unsupported_models_are_named(method):
    model = build()
    assert method().supports(model, loss()) is None
    assert method().supports(model, loss("time_mean")) is None
    own = OwnForward(model.stages, model.head, "none")
    assert "OwnForward overrides StagedModel.forward" in method().supports(own, loss())
    node = lif()()
    shared = StagedModel([AddBlock(2, lambda: node, over_time), nn.Identity(), node], nn.Identity(), "none")
    assert unsegmentable(shared) == "stages 0 and 2 share a LIFNode and with it its state"
