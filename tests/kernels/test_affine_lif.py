"""Affine map and neuron in one operator: autograd through the two apart, and spikes that are written as bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from methods import packing
from methods.kernels import affine_lif, lif, lif_torch
from methods.kernels.affine_lif import Affine
from methods.kernels.lif_torch import Neuron
from tests.kernels.common import DEVICE, DTYPES, GRADIENT, NEEDS, Case, cases, drawn, relative

CONSTANTS = Neuron(1.7, True, 0.7, 0.0, False, surrogate.ATan())


@pytest.fixture(params=["torch", "triton"])
def path(request, monkeypatch):
    """The operator on either implementation; what it is compared with is torch."""
    monkeypatch.setenv("SNNBENCH_KERNELS", "torch")
    if request.param == "triton":
        pytest.importorskip("triton", reason=NEEDS)
        monkeypatch.setattr(affine_lif, "triton_at", lambda device: True)
        monkeypatch.setattr(packing, "triton_at", lambda device: True)
    return request.param


def affine(case: Case, dim: int = 1) -> Affine:
    draw = torch.Generator().manual_seed(case.seed)
    wide = torch.promote_types(case.dtype, torch.float32)
    scale, shift = torch.randn(2, case.shape[dim + 1], generator=draw, dtype=torch.float64).to(wide).to(DEVICE)
    return Affine(scale + 1, shift, dim)


def reference(x: Tensor, how: Affine) -> Tensor:
    shape = [1] * x.dim()
    shape[how.dim + 1] = -1
    return (x * how.scale.view(shape) + how.shift.view(shape)).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_the_map_then_the_neuron(dtype, path):
    @drawn
    @given(cases((dtype,)), st.sampled_from([0, 1, 3]))
    def check(case: Case, dim: int) -> None:
        x, how = case.normal(2.0), affine(case, dim)
        spikes, v = affine_lif.sequence(x, how, 0.0, None, CONSTANTS)
        wanted, last, _ = lif_torch.forward(reference(x, how), 0.0, None, CONSTANTS, keep=False)
        assert torch.equal(spikes, wanted)
        assert torch.equal(v, last)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_the_spikes(dtype, path):
    @drawn
    @given(cases((dtype,)), st.booleans())
    def check(case: Case, mapped: bool) -> None:
        x = case.normal(2.0)
        how = affine(case) if mapped else None
        bits, v = affine_lif.packed(x, how, 0.0, None, CONSTANTS)
        wanted, last, _ = lif_torch.forward(x if how is None else reference(x, how), 0.0, None, CONSTANTS, keep=False)
        assert bits.payload.shape == (case.shape[0], -(-x[0].numel() // 8))
        assert torch.equal(bits.dense(), wanted)
        assert bits.step(0).dtype == dtype
        assert torch.equal(v, last)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_autograds_through_the_two_apart(dtype, path):
    @drawn
    @given(cases((dtype,)), st.booleans())
    def check(case: Case, from_v: bool) -> None:
        found = []
        grad, grad_v = case.normal(offset=2), case.normal(offset=3)[0]
        for fused in (True, False):
            x, how = case.normal(2.0).detach().requires_grad_(), affine(case)
            how.scale.requires_grad_()
            how.shift.requires_grad_()
            if fused:
                spikes, v = affine_lif.sequence(x, how, 0.0, None, CONSTANTS)
            else:
                spikes, v = lif.sequence(reference(x, how), 0.0, None, CONSTANTS, "membrane")
            loss = (spikes * grad).sum() + ((v * grad_v).sum() if from_v else 0)
            loss.backward()
            found.append((x.grad, how.scale.grad, how.shift.grad))
        for ours, theirs in zip(*found, strict=True):
            assert ours.dtype == theirs.dtype
            size = max(float(theirs.double().norm()), 1e-2 * theirs.numel() ** 0.5)
            assert float((ours.double() - theirs.double()).norm()) <= 2 * GRADIENT[dtype] * size

    check()


def test_a_training_batch_norm_before_the_neuron(path):
    """Statistics stay in autograd's hands: the gradient of conv's output is that of BatchNorm and LIF in a row."""
    draw = torch.Generator().manual_seed(0)
    data = (3 * torch.randn(6, 4, 3, 5, 5, generator=draw, dtype=torch.float64) + 1).to(DEVICE)
    weight = torch.randn(6, 4, 3, 5, 5, generator=draw, dtype=torch.float64).to(DEVICE)
    norm = nn.BatchNorm2d(3).double().to(DEVICE)
    node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")
    x = data.clone().requires_grad_()
    wanted = node(norm(x.flatten(0, 1)).view(x.shape))
    (wanted * weight).sum().backward()
    expected = [x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]
    norm.zero_grad()
    x = data.clone().requires_grad_()
    mean, var = x.mean((0, 1, 3, 4)), x.var((0, 1, 3, 4), correction=0)
    scale = norm.weight * (var + norm.eps).rsqrt()
    constants = Neuron(2.0, True, 1.0, 0.0, False, node.surrogate_function)
    spikes, _ = affine_lif.sequence(x, Affine(scale, norm.bias - mean * scale), 0.0, None, constants)
    (spikes * weight).sum().backward()
    assert 0.02 < wanted.mean() < 0.98
    assert torch.equal(spikes, wanted)
    for ours, theirs in zip([x.grad, norm.weight.grad, norm.bias.grad], expected, strict=True):
        assert relative(ours, theirs) <= 1e-10


def test_an_input_that_changes_before_the_backward_is_noticed():
    x = torch.randn(3, 2, 4).requires_grad_() * 1.0
    how = Affine(torch.ones(4), torch.zeros(4), 1)
    spikes, _ = affine_lif.sequence(x, how, 0.0, None, CONSTANTS)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        spikes.sum().backward()
