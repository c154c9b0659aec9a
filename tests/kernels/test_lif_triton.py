"""Neuron kernels: bit for bit the fallback's spikes and membranes, its gradients, and SpikingJelly's in float64."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from methods.kernels import lif, lif_torch
from methods.kernels.lif_torch import Neuron
from tests.kernels.common import DEVICE, DTYPES, GRADIENT, NEEDS, Case, arranged, cases, drawn, relative

lif_triton = pytest.importorskip("methods.kernels.lif_triton", reason=NEEDS)

SURROGATES = [
    surrogate.Sigmoid, surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.PiecewiseExp, surrogate.SoftSign,
    surrogate.SuperSpike, surrogate.Erf,
]  # fmt: skip
neurons = st.builds(
    Neuron,
    tau=st.sampled_from([None, 1.7, 2.0]),
    decay_input=st.booleans(),
    v_threshold=st.sampled_from([1.0, 0.7]),
    v_reset=st.sampled_from([None, 0.0, -0.3]),
    detach_reset=st.booleans(),
    surrogate=st.builds(lambda kind: kind(alpha=1.3), st.sampled_from(SURROGATES)),
)
"""0.7, 1.7 and -0.3 have no exact value in half precision: where they are rounded decides over spikes."""


def rate(case: Case, learnt: bool) -> Tensor | None:
    """PLIF's ``q``: float32, also in a half-precision network; float64 in a float64 one."""
    wide = torch.promote_types(case.dtype, torch.float32)
    return torch.tensor(0.37, dtype=wide, device=DEVICE) if learnt else None


def start(case: Case, given_v0: bool) -> Tensor | float:
    return case.normal(0.3, offset=1)[0].clone() if given_v0 else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_spikes_and_membranes_are_the_fallbacks(dtype):
    @drawn
    @given(cases((dtype,)), neurons, st.booleans(), st.booleans())
    def check(case: Case, constants: Neuron, learnt: bool, given_v0: bool) -> None:
        constants = dataclasses.replace(constants, tau=None) if learnt else constants
        x, q, v0 = case.normal(2.0), rate(case, learnt), start(case, given_v0)
        wanted = lif_torch.forward(x, v0, q, constants, keep=True)
        got = lif_triton.forward(x, v0, q, constants, keep=True)
        for ours, theirs in zip(got, wanted, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.dtype == dtype
        assert torch.equal(lif_triton.membranes(x, v0, q, constants), wanted[2])
        assert lif_triton.forward(x, v0, q, constants, keep=False)[2] is None

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_the_fallbacks_and_take_the_membranes_memory(dtype):
    @drawn
    @given(cases((dtype,)), neurons, st.booleans(), st.booleans(), st.booleans(), st.booleans())
    def check(case: Case, constants: Neuron, learnt: bool, given_v0: bool, from_s: bool, from_v: bool) -> None:
        constants = dataclasses.replace(constants, tau=None) if learnt else constants
        x, q, v0 = case.normal(2.0), rate(case, learnt), start(case, given_v0)
        grad = case.normal(offset=2) if from_s else None
        grad_v = case.normal(offset=3)[0] if from_v else None
        u = lif_triton.membranes(x, v0, q, constants)
        wanted = lif_torch.backward(grad, grad_v, u.clone(), v0, q, constants)
        memory = u.data_ptr()
        got = lif_triton.backward(grad, grad_v, u, v0, q, constants)
        assert got[0].data_ptr() == memory
        for ours, theirs in zip(got, wanted, strict=True):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert ours.dtype == theirs.dtype
                size = max(float(theirs.double().norm()), 1e-2 * theirs.numel() ** 0.5)
                assert float((ours.double() - theirs.double()).norm()) <= 2 * GRADIENT[dtype] * size

    check()


KINDS: dict[str, Any] = {
    "lif": lambda **kw: neuron.LIFNode(tau=1.7, **kw),
    "lif-plain-input": lambda **kw: neuron.LIFNode(tau=1.7, decay_input=False, **kw),
    "if": lambda **kw: neuron.IFNode(**kw),
    "plif": lambda **kw: neuron.ParametricLIFNode(init_tau=1.7, **kw),
}


@pytest.mark.parametrize("save", ["membrane", "input"])
@pytest.mark.parametrize(("v_reset", "detach"), itertools.product([None, 0.0, -0.3], [True, False]))
@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_spikingjellys_autograd(kind, v_reset, detach, save, monkeypatch):
    """Through the operator that methods use: forward and backward of both ways to keep the membranes."""
    monkeypatch.setattr(lif, "kernel", lambda device: lif_triton)
    node = KINDS[kind](
        v_threshold=0.8, v_reset=v_reset, detach_reset=detach, surrogate_function=surrogate.ATan(), step_mode="m",
    ).double().to(DEVICE)  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(5, 3, 40, generator=draw, dtype=torch.float64)).to(DEVICE)
    weight = torch.randn(5, 3, 40, generator=draw, dtype=torch.float64).to(DEVICE)
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = node(theirs)
    ((wanted * weight).sum() + (node.v * weight[0]).sum()).backward()
    wanted_rate = node.w.grad.clone() if kind == "plif" else None
    node.zero_grad()
    q = node.w.sigmoid() if kind == "plif" else None
    tau = node.tau if kind.startswith("lif") else None
    constants = Neuron(tau, "plain" not in kind, 0.8, v_reset, detach, node.surrogate_function)
    spikes, v = lif.sequence(ours, v_reset or 0.0, q, constants, save)
    ((spikes * weight).sum() + (v * weight[0]).sum()).backward()
    assert 0.05 < wanted.mean() < 0.95
    assert torch.equal(spikes, wanted)
    assert relative(v, node.v) <= 1e-14
    assert relative(ours.grad, theirs.grad) <= 1e-12
    if wanted_rate is not None:
        assert relative(node.w.grad, wanted_rate) <= 1e-12


@pytest.mark.parametrize("kind", SURROGATES)
def test_every_surrogate_has_its_derivative(kind):
    x = torch.linspace(-3, 4, 64, dtype=torch.float64, device=DEVICE).view(1, 64)
    constants = Neuron(None, True, 0.5, None, True, kind(alpha=1.7))
    ones = torch.ones_like(x)
    got, _, _ = lif_triton.backward(ones, None, lif_triton.membranes(x, 0.0, None, constants), 0.0, None, constants)
    leaf = x.clone().requires_grad_()
    constants.surrogate(leaf - 0.5).sum().backward()
    assert relative(got, leaf.grad) <= 1e-12
    assert leaf.grad.norm() > 0


class Unknown(surrogate.ATan):
    """A surrogate that the kernels have no formula for."""


def test_another_surrogate_goes_through_torch():
    x = torch.linspace(-2, 2, 16, device=DEVICE).view(2, 8)
    known, unknown = (Neuron(2.0, True, 1.0, 0.0, False, kind()) for kind in (surrogate.ATan, Unknown))
    found = []
    for constants in (known, unknown):
        u = lif_triton.membranes(x, 0.0, None, constants)
        found.append(lif_triton.backward(torch.ones_like(x), None, u, 0.0, None, constants)[0])
    assert relative(*found) <= 1e-6
    assert found[0].norm() > 0


def test_a_repeated_step_is_read_where_it_lies_and_layouts_are_kept():
    x = torch.randn(1, 2, 3, 4, 4, device=DEVICE).expand(6, 2, 3, 4, 4)
    assert lif_triton.steps(x).data_ptr() == x.data_ptr()
    last = arranged(torch.randn(4, 2, 3, 4, 4, device=DEVICE), "channels_last")
    constants = Neuron(2.0, True, 1.0, 0.0, True, surrogate.ATan())
    spikes, v, u = lif_triton.forward(last, 0.0, None, constants, keep=True)
    assert spikes.stride() == u.stride() == last.stride()
    assert v.stride() == last[0].stride()


def test_no_neurons_at_all():
    x = torch.randn(3, 0, 5, device=DEVICE)
    constants = Neuron(2.0, True, 1.0, 0.0, True, surrogate.ATan())
    spikes, v, u = lif_triton.forward(x, 0.0, None, constants, keep=True)
    assert (spikes.shape, v.shape) == ((3, 0, 5), (0, 5))
    assert lif_triton.backward(None, None, u, 0.0, None, constants)[0].shape == (3, 0, 5)


def test_on_a_cpu_torch_is_chosen():
    assert lif.kernel(torch.device("cpu")) is lif_torch
