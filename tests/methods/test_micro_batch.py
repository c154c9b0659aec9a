"""Gradient accumulation: exact without normalisation over samples, another network with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.contracts import StagedModel, reset_states
from methods.bptt import BPTT
from methods.micro_batch import MicroBatch, MicroBatchOptions
from tests.methods.nets import batch, build, difference, loss, no_norm, over_time, per_step, prepared, run
from tests.methods.test_memory import track
from tests.methods.test_sltt import weight_standardised


def micro(chunks: int) -> MicroBatch:
    return MicroBatch(MicroBatchOptions(chunks=chunks))


def plain(**kwargs: Any) -> StagedModel:
    return build(norm=no_norm, **kwargs)


def both(net: Any, chunks: int, N: int = 7, kind: str = "per_step", dtype: torch.dtype = torch.float64) -> Any:
    """One step of the method and one of BPTT on the network as built."""
    x, y = batch(N=N, dtype=dtype)
    model = net().to(dtype)
    reference, method = copy.deepcopy(model), micro(chunks)
    ours = run(method, prepared(method, model, x), x, y, loss(kind))
    return ours, run(BPTT(), reference.train(), x, y, loss(kind)), method


@pytest.mark.parametrize("net", [plain, weight_standardised])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 99])
@pytest.mark.parametrize("kind", ["per_step", "time_mean"])
def test_exact_without_normalisation_over_samples(net, chunks, kind):
    ours, bptt, _ = both(net, chunks, kind=kind)
    assert ours.updates == 1
    assert difference(ours.gradients, bptt.gradients) <= 1e-12
    assert torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-12)
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert not ours.out.loss.requires_grad
    assert not ours.out.logits.requires_grad


def test_float32_and_autocast_without_normalisation():
    ours, bptt, _ = both(plain, 3, dtype=torch.float32)
    assert difference(ours.gradients, bptt.gradients) <= 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, bptt, _ = both(plain, 3, dtype=torch.float32)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in ours.gradients.values())
    assert difference(ours.gradients, bptt.gradients) <= 2e-2  # bf16 gradients of slices are rounded before they add up


@pytest.mark.parametrize("norm", [over_time, per_step])
def test_batch_normalisation_makes_another_network(norm):
    """Gradient, loss and statistics differ from BPTT's on the network as built: the declared change."""
    ours, bptt, method = both(lambda: build(norm=norm), 3)
    assert difference(ours.gradients, bptt.gradients) > 1e-2
    assert not torch.allclose(ours.out.loss, bptt.out.loss, rtol=1e-3)
    assert method.model.startswith("changed: batch normalisation")
    name = "stages.0.1.num_batches_tracked"
    assert int(ours.buffers[name]) == 3 * int(bptt.buffers[name])


@pytest.mark.parametrize("norm", [over_time, per_step])
@pytest.mark.parametrize("chunks", [2, 3])
def test_exact_for_the_network_that_it_prepares(norm, chunks):
    x, y = batch(N=7, dtype=torch.float64)
    model, method = build(norm=norm).double(), micro(chunks)
    prepared(method, model, x)
    reference = copy.deepcopy(model)
    ours, bptt = run(method, model, x, y), run(BPTT(), reference, x, y)
    assert difference(ours.gradients, bptt.gradients) <= 1e-12
    assert torch.allclose(ours.out.logits, bptt.out.logits, rtol=1e-12)
    assert all(torch.equal(ours.buffers[name], value) for name, value in bptt.buffers.items())


def test_evaluation_keys_and_class_are_those_of_the_model():
    x, _ = batch(N=5)
    model, reference = build(), build()
    finished = MicroBatch().finish(prepared(MicroBatch(), model, x))
    assert isinstance(finished, StagedModel)
    assert list(finished.state_dict()) == list(reference.state_dict())
    with torch.no_grad():
        assert torch.equal(finished.eval()(x), reference.eval()(x))


def test_a_model_with_a_forward_of_its_own_keeps_it():
    class Scaled(StagedModel):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.gain * super().forward(x)

    def net() -> StagedModel:
        inner = plain()
        return Scaled(inner.stages, inner.head, "none")

    ours, bptt, _ = both(net, 2)
    assert "gain" in ours.gradients
    assert difference(ours.gradients, bptt.gradients) <= 1e-12


def test_saved_bytes_fall_with_the_slices():
    x, y = batch(T=8, N=8)
    saved = {chunks: track(micro(chunks), plain(), x, y).saved_bytes for chunks in (1, 2, 8)}
    bptt = track(BPTT(), plain(), x, y).saved_bytes
    assert saved[1] == pytest.approx(bptt, rel=0.02)
    assert saved[2] == pytest.approx(bptt / 2, rel=0.1)  # a slice of the input is copied before the first convolution
    assert saved[8] < bptt / 6


def test_states_of_one_slice_do_not_reach_the_next():
    """Equal slices give equal logits."""
    x, y = batch(N=2, dtype=torch.float64)
    x, y = torch.cat([x, x], 1), torch.cat([y, y])
    model, method = plain().double(), micro(2)
    ours = run(method, prepared(method, model, x), x, y)
    assert torch.equal(ours.out.logits[:2], ours.out.logits[2:])
    reset_states(model)


def test_options_and_plan():
    with pytest.raises(ValidationError, match="chunks"):
        MicroBatchOptions(chunks=0)
    assert micro(3).plan() == {"slices": []}
    assert both(plain, 3)[2].plan() == {"slices": [3, 2, 2]}
    assert both(plain, 99)[2].plan() == {"slices": [1] * 7}
