"""Streamed layers round where BPTT rounds: normalisation, spikes and logits to the bit, in every mode."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from harness.contracts import StagedModel, reset_states
from harness.spikes import SpikeRecorder, flipped
from methods.bptt import BPTT
from methods.streaming.norm import Moments, Norm
from methods.streaming.unit import normalised
from tests.methods.nets import batch, build, difference, prepared, run
from tests.methods.test_streamed import MODES, NETS, TOLERANCE, forced, streamed


def conv_bits_are_those_of_the_whole(model: StagedModel, x: Tensor) -> bool:
    """Whether this processor's convolutions give a chunk of the batch the bits that it has in the whole batch."""
    seen: list[bool] = []
    shape = x.shape[:2]

    def check(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        single = getattr(module, "step_mode", "s") == "s"  # in a container: without the dimension of time
        given, whole = (v.unflatten(0, shape) if single else v for v in (args[0], out))
        for a, b in ((0, 1), (0, 2), (2, 3)):
            chunk = given[:, a:b].contiguous()
            part = (
                module.forward(chunk.flatten(0, 1)).unflatten(0, chunk.shape[:2]) if single else module.forward(chunk)
            )
            seen.append(torch.equal(part, whole[:, a:b]))

    handles = [m.register_forward_hook(check) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        reset_states(model)
        model(x)
    for handle in handles:
        handle.remove()
    return all(seen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", ["lif", "plif", "sew", "per-step", "container", "no-norm", "linear", "average-pool"])
def test_forward_is_that_of_bptt_to_the_bit(net, mode):
    """A spike that flips by rounding would change the gradient visibly, so nothing may round otherwise."""
    x, y = batch()
    if not conv_bits_are_those_of_the_whole(NETS[net]().train(), x):
        pytest.skip("the convolutions of this processor round a chunk of the batch otherwise than the whole batch")
    found = []
    for make in (lambda m: BPTT(), lambda m: forced(m, MODES[mode])):
        model = NETS[net]().train()
        method = make(model)
        prepared(method, model, x)
        with SpikeRecorder(model) as spikes:
            found.append((run(method, model, x, y), spikes, len(spikes.nodes)))
    (expected, theirs, count), (got, ours, _) = found
    assert torch.equal(got.out.logits, expected.out.logits)
    assert torch.equal(got.out.loss, expected.out.loss)
    assert ours.fired().keys() == theirs.fired().keys()
    assert len(ours.fired()) == count
    assert ours.rates() == pytest.approx(theirs.rates(), rel=1e-12)
    assert flipped(ours, theirs) == 0.0
    assert difference(got.gradients, expected.gradients) <= 1e-5


def test_a_forward_that_is_done_again_is_recorded_once():
    class Steps(nn.Module):
        """Integers that no rule knows, and that are larger in the second step than in the first."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    (x, y), method = batch(dtype=torch.float64), streamed()
    model, plain = (build(middle=lambda c: Steps()).double().train() for _ in range(2))
    run(method, prepared(method, model, x), x, y)
    run(BPTT(), plain, x, y)
    found = []
    for kind, net in ((method, model), (BPTT(), plain)):
        net.stages[1].factor.fill_(3)
        with SpikeRecorder(net) as spikes:
            run(kind, net, x, y)
        found.append(spikes)
    assert method.plan()["redone_steps"] == 1
    assert flipped(*found) == 0.0
    assert found[0].fired().keys() == found[1].fired().keys()


CHANNELS, LAYER = 5, {2: layer.BatchNorm1d, 3: layer.BatchNorm1d, 4: layer.BatchNorm2d, 5: layer.BatchNorm3d}


def normalise(norm: Norm, x: Tensor, chunks: int) -> Tensor:
    """``x [T, N, C, ...]`` as a streamed layer would, in chunks."""
    parts = [(a, min(a + chunks, x.shape[1])) for a in range(0, x.shape[1], chunks)]
    moments = None
    if norm.coupled:
        moments = Moments(norm.per_step, x.shape[1])
        for a, b in parts:
            moments.add(x[:, a:b].contiguous(), a)
        if moments.centre(x.dtype):
            for a, b in parts:
                moments.spread(x[:, a:b].contiguous())
            moments.settle()
    affine = norm.affine(norm.statistics(moments, x.dim()))
    return torch.cat([normalised(x[:, a:b].contiguous(), affine) for a, b in parts], 1)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (16, 16), (2, 3, 3)])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 7])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_normalisation_in_chunks_is_torchs_to_the_bit(shape, train, chunk, dtype):
    x = torch.randn(4, 7, CHANNELS, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype) * 2 + 0.7
    ours, theirs = (LAYER[x.dim() - 1](CHANNELS, step_mode="m").to(dtype).train(train) for _ in range(2))
    for module in (ours, theirs):
        torch.manual_seed(4)
        for value in (module.weight, module.bias, module.running_mean, module.running_var):
            nn.init.uniform_(value, 0.5, 1.5)
    with torch.no_grad():
        expected = theirs(x)
        found = normalise(Norm(ours, False), x, chunk)
    if dtype == torch.float32:
        assert torch.equal(found, expected)
    else:  # sums in double precision are torch's own precision here, and depend on how they are split
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-6, atol=0), name


@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_normalisation_of_single_steps_in_chunks_is_torchs_to_the_bit(shape):
    x = torch.randn(4, 7, CHANNELS, *shape, generator=torch.Generator().manual_seed(3)) * 2 + 0.7
    ours, theirs = (LAYER[x.dim() - 1](CHANNELS, step_mode="s") for _ in range(2))
    with torch.no_grad():
        expected = torch.stack([theirs(step) for step in x])
        assert torch.equal(normalise(Norm(ours, True), x, 2), expected)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-6, atol=0), name
