"""torch.utils.checkpoint on spiking stages: what goes wrong as first written, and that the method does not."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, layer
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from harness.contracts import Method, StagedModel, reset_states
from methods.bptt import BPTT
from methods.checkpoint import Checkpoint
from methods.torch_checkpoint import TorchCheckpoint
from tests.methods.nets import AddBlock, batch, build, conv, difference, lif, loss, over_time, prepared, run
from tests.methods.test_exactness import NETS, TOLERANCE, compare
from tests.methods.test_memory import flat, saved, track

Contexts = Callable[[nn.Module], Any]


class AsFirstWritten(Method):
    """The loop without any care; ``recompute`` is a context for the recompute."""

    name, summary, paper, gradient = "as-first-written", "-", "-", "exact"
    recompute: Contexts = staticmethod(lambda _: contextlib.nullcontext())

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Any, update: Callable[[], None]) -> Any:
        for stage in model.stages:
            contexts = contextlib.nullcontext(), self.recompute(stage)
            x = checkpoint(stage, x, use_reentrant=False, context_fn=lambda found=contexts: found)
        loss.backward(loss(model.head(x), y))
        update()


def counts(step: Any) -> set[int]:
    return {int(b) for name, b in step.buffers.items() if name.endswith("num_batches_tracked")}


def first_written(recompute: Contexts | None = None) -> tuple[Any, Any]:
    x, y = batch(dtype=torch.float64)
    model, method = build().double(), AsFirstWritten()
    if recompute is not None:
        method.recompute = recompute
    reference = copy.deepcopy(model)
    return run(method, model.train(), x, y), run(BPTT(), reference.train(), x, y)


def test_as_first_written_the_gradient_is_wrong_and_statistics_are_updated_twice():
    ours, bptt = first_written()
    assert difference(ours.gradients, bptt.gradients) > 0.05
    assert counts(ours) == {2}
    assert counts(bptt) == {1}


def test_membranes_at_entry_are_what_the_gradient_lacks():
    @contextlib.contextmanager
    def reset(stage: nn.Module) -> Iterator[None]:
        reset_states(stage)
        yield

    ours, bptt = first_written(reset)
    assert difference(ours.gradients, bptt.gradients) == 0.0
    assert counts(ours) == {2}


def test_switching_tracking_off_raises():
    @contextlib.contextmanager
    def untracked(stage: nn.Module) -> Iterator[None]:
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
        yield

    with pytest.raises(CheckpointError, match="different number of tensors"):
        first_written(untracked)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradient_loss_and_statistics_are_those_of_bptt(net, dtype):
    assert compare(TorchCheckpoint, NETS[net], dtype) <= TOLERANCE[dtype]


def test_time_mean_loss():
    assert compare(TorchCheckpoint, NETS["lif"], torch.float64, "time_mean") <= 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("net", ["lif", "add-blocks", "torch-dropout"])
def test_autocast(net, dtype):
    x, y = batch()
    results = []
    for kind in (BPTT, TorchCheckpoint):
        model, instance = NETS[net](), kind()
        prepared(instance, model, x)
        with torch.autocast("cpu", dtype=dtype):
            results.append(run(instance, model, x, y))
    expected, got = results
    assert torch.equal(got.out.logits, expected.out.logits)
    assert difference(got.gradients, expected.gradients) <= 1e-6


@pytest.mark.parametrize("net", ["lif", "dropout"])
def test_the_recompute_leaves_no_trace(net):
    x, y = batch(dtype=torch.float64)
    left = []
    for kind in (BPTT, TorchCheckpoint):
        model, instance = NETS[net]().double(), kind()
        prepared(instance, model, x)
        before = dict(model.named_buffers())
        run(instance, model, x, y)
        assert all(buffer is before[name] for name, buffer in model.named_buffers())
        left.append([v for m in model.modules() if isinstance(m, base.MemoryModule) for v in m.memories()])
    assert len(left[0]) == len(left[1]) >= 3
    assert all(torch.equal(one, other) for one, other in zip(*left, strict=True))


def test_saved_bytes_are_those_of_checkpointing():
    plain, ours, kept = (saved(method, flat, 8) for method in (BPTT, TorchCheckpoint, Checkpoint))
    # Beside the stages' inputs: membranes that outlive the forward, and buffers' worth of bookkeeping.
    assert kept <= ours < 1.2 * kept < plain / 2


def test_peak_is_lower_too():
    def long() -> StagedModel:
        model = flat()
        model.stages = nn.Sequential(*[conv(4 if i else 2, 4, lif(), over_time) for i in range(6)], *model.stages[2:])
        return model

    x, y = batch(16)
    peaks = [track(method(), long(), x, y).activation_bytes for method in (BPTT, TorchCheckpoint)]
    assert peaks[1] < 0.6 * peaks[0]


def test_frozen_stages_and_the_plan():
    x, y = batch(dtype=torch.float64)
    gradients = []
    for kind in (BPTT, TorchCheckpoint):
        model, instance = build().double(), kind()
        model.stages[0].requires_grad_(False)
        gradients.append(run(instance, prepared(instance, model, x), x, y).gradients)
    assert difference(gradients[1], gradients[0]) <= 1e-10
    assert instance.plan() == {"segments": 4}


def test_shared_state_is_refused():
    block = AddBlock(4, lif(), over_time)
    model = build(middle=lambda _: block)
    model.stages.append(block)
    assert "share" in str(TorchCheckpoint().supports(model, loss()))
    assert TorchCheckpoint().supports(build(middle=lambda _: layer.Dropout(0.5, step_mode="m")), loss()) is None
