"""LIF, IF and PLIF over a whole sequence ``[T, N, ...]``, in torch: the fallback where no compiled kernel is at hand.

Every step writes into memory that exists already: nothing is stacked, temporaries have one step's size. The operators
and their order are those of SpikingJelly 2.0 (``_ops/{lif,if_,plif}/reference.py``), so that spikes are bit-identical
to its own in every dtype::

    charge   u = v + (x - (v - r)) q     or, without decay_input,  u = v - (v - r) q + x;     IF:  u = v + x
    fire     s = (u - Vth >= 0)
    reset    hard  v = (1 - s) u + s r             soft  v = u - s Vth

with ``q = 1 / tau`` (for PLIF a tensor) and ``r`` the reset voltage (0 for the soft reset). Backward, with ``g`` the
gradient of ``s[t]``, ``c`` that of ``v[t]`` and ``psi`` the surrogate derivative at ``u - Vth``; what is in brackets
belongs to a reset that is not detached::

    hard  d = (g [+ c (r - u)]) psi + c (1 - s)         soft  d = (g [- c Vth]) psi + c
    grad_x = d q (without decay_input, and for IF: d);   c <- d - d q  (IF: d)
    grad_q = sum d (x - v[t-1] + r) = sum d (u - v[t-1]) / q     or, without decay_input,   -sum d (v[t-1] - r)

For LIF with ``q = 1 - lam``, ``r = 0``, ``Vth = 1`` and the input as it is, these are MELIF's equations (checkpointing
and spike compression, ICLR 2026). A compiled kernel offers ``NAME``, ``forward``, ``membranes`` and ``backward`` too;
:mod:`methods.kernels.lif` picks one by device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAME = "torch"
"""Name of this implementation in a record's plan."""


@dataclass(frozen=True)
class Neuron:
    """A neuron's constants.

    Args:
        tau: membrane time constant in steps; None for IF, and for PLIF, whose ``q`` is a tensor.
        decay_input: whether the input is scaled by ``q``; without effect for IF.
        v_threshold: ``Vth``.
        v_reset: ``r``, or None for the soft reset.
        detach_reset: keep the reset out of the gradient.
        surrogate: SpikingJelly's surrogate module; its own ``backward`` is used.
    """

    tau: float | None
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    detach_reset: bool
    surrogate: Any


def forward(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spikes, the last membrane and, on request, the membranes before the reset.

    Args:
        x: input ``[T, N, ...]``.
        v0: initial membrane, ``[N, ...]`` in ``x``'s dtype, or a number.
        q: PLIF's ``1 / tau``, a scalar tensor; None otherwise.
        neuron: the constants.
        keep: whether ``u`` of all steps is returned.

    Returns:
        ``s [T, N, ...]``, ``v[T-1] [N, ...]``, ``u [T, N, ...]`` or None.
    """
    spikes = torch.empty_like(x)
    u = torch.empty_like(x) if keep else None
    return spikes, _run(x, v0, q, neuron, spikes, u), u


def membranes(x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron) -> Tensor:
    """The membranes before the reset, ``u [T, N, ...]``, once more; arguments as in :func:`forward`."""
    u = torch.empty_like(x)
    _run(x, v0, q, neuron, None, u)
    return u


def backward(
    grad: Tensor | None, grad_v: Tensor | None, u: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a :func:`forward`. ``u`` is used up: its memory becomes the input's gradient.

    Args:
        grad: gradient of the spikes, ``[T, N, ...]``, or None for zero.
        grad_v: gradient of the last membrane, ``[N, ...]``, or None for zero.
        u: membranes before the reset, ``[T, N, ...]``.
        v0: as in :func:`forward`.
        q: as in :func:`forward`.
        neuron: the constants.

    Returns:
        Gradients of ``x``, of ``v0`` as a tensor, and of ``q`` where there is one.
    """
    carry = torch.zeros_like(u[0]) if grad_v is None else grad_v.to(u.dtype, copy=True)
    # Sums over many elements: single precision at least.
    total = None if q is None else u.new_zeros((), dtype=torch.promote_types(u.dtype, torch.float32))
    for t in reversed(range(u.shape[0])):
        d = _membrane_gradient(None if grad is None else grad[t], carry, u[t], neuron)
        if q is not None and total is not None:
            previous = _after_reset(u[t - 1], neuron) if t else v0
            total.add_(_rate_gradient(d, u[t], previous, q, neuron))
        carry = _uncharge(d, q, neuron, grad_x=u[t])
    return u, carry, None if q is None or total is None else total.to(q.dtype)


def reset(u: Tensor, s: Tensor, neuron: Neuron, out: Tensor) -> None:
    """Membrane after the reset, ``[N, ...]``, written to ``out``."""
    if neuron.v_reset is None:
        # Two operators: in half precision the threshold is rounded before it is subtracted, as in SpikingJelly.
        torch.mul(s, neuron.v_threshold, out=out)
        torch.sub(u, out, out=out)
        return
    torch.mul(u, s, out=out)
    torch.sub(u, out, out=out)
    if neuron.v_reset:
        out.add_(s, alpha=neuron.v_reset)


def _run(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, spikes: Tensor | None, membranes: Tensor | None
) -> Tensor:
    """All steps; what has no place for all of them gets one step's. Returns the last membrane."""
    v = torch.empty_like(x[0])
    v.copy_(v0) if isinstance(v0, Tensor) else v.fill_(v0)
    one_spike = torch.empty_like(v) if spikes is None else None
    one_membrane = torch.empty_like(v) if membranes is None else None
    for t in range(x.shape[0]):
        u = one_membrane if membranes is None else membranes[t]
        s = one_spike if spikes is None else spikes[t]
        assert u is not None
        assert s is not None
        _charge(x[t], v, q, neuron, out=u)
        torch.sub(u, neuron.v_threshold, out=s).ge_(0)
        reset(u, s, neuron, out=v)
    return v


def _charge(x: Tensor, v: Tensor, q: Tensor | None, neuron: Neuron, out: Tensor) -> None:
    if neuron.tau is None and q is None:
        torch.add(v, x, out=out)
        return
    above = v - neuron.v_reset if neuron.v_reset else v
    if neuron.decay_input:
        _scale_(torch.sub(x, above, out=out), q, neuron).add_(v)
    else:
        _scale_(out.copy_(above), q, neuron)
        torch.sub(v, out, out=out).add_(x)


def _scale_(value: Tensor, q: Tensor | None, neuron: Neuron) -> Tensor:
    return value.div_(neuron.tau) if q is None else value.mul_(q)  # type: ignore[arg-type]


def _membrane_gradient(grad: Tensor | None, carry: Tensor, u: Tensor, neuron: Neuron) -> Tensor:
    """``d`` of one step; ``carry`` is used up."""
    z = u - neuron.v_threshold
    spike_grad = torch.zeros_like(u) if grad is None else grad
    if not neuron.detach_reset:
        slope = -neuron.v_threshold if neuron.v_reset is None else neuron.v_reset - u
        spike_grad = spike_grad + carry * slope
    if neuron.v_reset is not None:
        carry.mul_(z < 0)
    surrogate = neuron.surrogate
    return carry.add_(surrogate.backward(spike_grad, z, surrogate.alpha))


def _uncharge(d: Tensor, q: Tensor | None, neuron: Neuron, grad_x: Tensor) -> Tensor:
    """Writes the input's gradient to ``grad_x`` and returns that of the membrane before; ``d`` is used up."""
    if neuron.tau is None and q is None:
        grad_x.copy_(d)
        return d
    if neuron.decay_input:
        _scale_(grad_x.copy_(d), q, neuron)
        return d.sub_(grad_x)
    grad_x.copy_(d)
    return d.sub_(_scale_(d.clone(), q, neuron))


def _after_reset(u: Tensor, neuron: Neuron) -> Tensor:
    v = torch.sub(u, neuron.v_threshold).ge_(0)
    reset(u, v.clone(), neuron, out=v)
    return v


def _rate_gradient(d: Tensor, u: Tensor, previous: Tensor | float, q: Tensor, neuron: Neuron) -> Tensor:
    """One step's share of the gradient of ``q``, a scalar."""
    wide = torch.promote_types(u.dtype, torch.float32)
    if neuron.decay_input:
        return (d * (u - previous)).sum(dtype=wide) / q
    return (d * (neuron.v_reset or 0.0)).sum(dtype=wide) - (d * previous).sum(dtype=wide)
