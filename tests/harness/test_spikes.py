"""Spike recorder: outputs of modules, and what a method hands over that runs neurons without calling them."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from harness.contracts import listener
from harness.spikes import SpikeRecorder, flipped


def net() -> nn.Module:
    return nn.Sequential(neuron.IFNode(step_mode="m"), neuron.LIFNode(step_mode="m"))


def spikes() -> Tensor:
    return (torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) > 0.6).float()


def whole(model: nn.Module, values: Tensor) -> SpikeRecorder:
    """A recorder that heard the first layer's output at once, and nothing of the second."""
    with SpikeRecorder(model) as recorder:
        tell = listener(model[0])
        assert tell is not None
        tell(values, 0)
    return recorder


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunks_are_put_together_in_the_order_of_the_batch(size):
    model, values = net(), spikes()
    with SpikeRecorder(model) as recorder:
        tell = listener(model[0])
        assert tell is not None
        for a in range(0, 5, size):
            tell(values[:, a : a + size], a)
    assert torch.equal(recorder.fired()["0"], (values != 0).flatten())
    assert recorder.rates() == {"0": pytest.approx(float(values.mean()))}
    assert flipped(recorder, whole(model, values)) == 0.0
    other = values.clone()
    other[0, 3, 1] = 1 - other[0, 3, 1]
    assert flipped(recorder, whole(model, other)) == pytest.approx(1 / values.numel())


def test_what_is_handed_over_is_compared_with_what_a_module_emits():
    model, x = net(), 2 * spikes()
    with SpikeRecorder(model) as theirs:
        model(x)
    emitted = copy.deepcopy(model[0])
    emitted.reset()
    assert flipped(whole(model, emitted(x)), theirs) == 0.0
    assert theirs.fired().keys() == {"0", "1"}


def test_a_second_forward_replaces_the_first():
    model, values = net(), spikes()
    with SpikeRecorder(model) as recorder:
        tell = listener(model[0])
        assert tell is not None
        for part in (1 - values, values):
            for a in (0, 2, 4):
                tell(part[:, a : a + 2], a)
    assert torch.equal(recorder.fired()["0"], (values != 0).flatten())
    assert recorder.rates()["0"] == pytest.approx(float(values.mean()))


def test_nobody_listens_before_and_after():
    model = net()
    keys = set(vars(model[0]))
    assert listener(model[0]) is None
    with SpikeRecorder(model, keep=False) as recorder:
        assert listener(model[0]) is not None
        model(spikes())
    assert listener(model[0]) is None
    assert set(vars(model[0])) == keys
    assert recorder.fired() == {}
    assert set(recorder.rates()) == {"0", "1"}
