"""Neuron kernels for chunks of a batch ``[T, n, C, ...]`` that are small enough to stay in a processor's cache.

The equations and the order of operators are those of :mod:`methods.kernels.lif_torch`; what differs is where results
go: the membranes take the input's memory, spikes leave as bytes, and a normalisation ``z = y scale + shift`` runs step
by step just before the neuron reads it, its two sums just after the neuron's backward wrote ``dz``.

On a CUDA device with Triton one launch does each of these instead (:mod:`methods.kernels.stream_triton`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from methods.kernels.choice import triton_at
from methods.kernels.lif_torch import Neuron, _after_reset, _membrane_gradient, _rate_gradient, _uncharge, reset


def valueless(x: Tensor) -> bool:
    """True for a fake or meta tensor: it only has bytes to count."""
    return x.is_meta or isinstance(x, FakeTensor)


def steps(x: Tensor) -> range:
    """The steps of ``x [T, ...]`` to run: all; of one without values two, whose bytes all others share."""
    return range(min(x.shape[0], 2) if valueless(x) else x.shape[0])


@dataclass(frozen=True)
class Affine:
    """A normalisation as a multiplication and an addition.

    Args:
        scale: ``[S, 1, C, 1, ...]`` with ``S`` 1 or ``T``.
        shift: the same shape.
        once: round once, after the sum, as torch's batch normalisation does on a CPU, not after the product too.
    """

    scale: Tensor
    shift: Tensor
    once: bool = False

    def at(self, t: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of one step, ``[1, C, 1, ...]``."""
        row = t if self.scale.shape[0] > 1 else 0
        return self.scale[row], self.shift[row]

    def into(self, y: Tensor, t: int, out: Tensor) -> None:
        """One normalised step; ``out`` may be ``y[t]`` itself."""
        scale, shift = self.at(t)
        if scale.dtype == y.dtype and self.once:
            torch.addcmul(shift, y[t], scale, out=out)
        elif scale.dtype == y.dtype:
            torch.mul(y[t], scale, out=out).add_(shift)
        else:  # half precision: single precision inside, as torch's batch normalisation
            out.copy_((y[t] * scale).add_(shift))


def charge_and_fire(
    y: Tensor,
    u: Tensor,
    affine: Affine | None,
    v0: Tensor | float,
    q: Tensor | None,
    neuron: Neuron,
    spikes: Tensor | None = None,
) -> None:
    """Membranes before the reset of all steps, and on request the spikes.

    Args:
        y: input ``[T, n, ...]``, before the normalisation where there is one.
        u: where the membranes go, of ``y``'s shape; may be ``y``.
        affine: the normalisation, or None.
        v0: initial membrane, ``[n, ...]`` or a number.
        q: PLIF's ``1 / tau``, or None.
        neuron: the constants.
        spikes: where spikes go, ``[T, n, ...]`` of any dtype and layout.
    """
    if fused(y) and u[0].is_contiguous():
        from methods.kernels import stream_triton

        direct = spikes is None or (spikes.dtype == y.dtype and spikes[0].is_contiguous())
        stream_triton.charge_and_fire(y, u, affine, v0, q, neuron, spikes if direct else None)
        if not direct and spikes is not None:
            spikes.copy_(fire(u, neuron))
        return
    v = torch.empty_like(y[0])
    v.copy_(v0) if isinstance(v0, Tensor) else v.fill_(v0)
    s = torch.empty_like(v)
    for t in steps(y):
        if affine is not None:
            affine.into(y, t, u[t])
        elif u is not y:
            u[t].copy_(y[t])
        _charge_(u[t], v, q, neuron, s)
        torch.sub(u[t], neuron.v_threshold, out=s).ge_(0)
        if spikes is not None:
            spikes[t].copy_(s)
        reset(u[t], s, neuron, out=v)


def fused(y: Tensor) -> bool:
    """True where one kernel normalises, fires and packs ``y [T, n, C, ...]``."""
    if not triton_at(y.device) or valueless(y):
        return False
    from methods.kernels import stream_triton

    return stream_triton.fits(y)


def fire_bits(
    y: Tensor,
    u: Tensor | None,
    affine: Affine | None,
    v0: Tensor | float,
    q: Tensor | None,
    neuron: Neuron,
    bits: Tensor,
) -> None:
    """The spikes alone, as bits; for a ``y`` that is :func:`fused`.

    Args:
        y: as in :func:`charge_and_fire`.
        u: where the membranes go; None: nowhere.
        affine: the normalisation, or None.
        v0: initial membrane, ``[n, ...]`` or a number.
        q: PLIF's ``1 / tau``, or None.
        neuron: the constants.
        bits: ``uint8 [n, T ceil(M / 8)]`` for ``M`` elements a step of a sample.
    """
    from methods.kernels import stream_triton

    stream_triton.charge_and_fire(y, u, affine, v0, q, neuron, bits=bits)


def fire(u: Tensor, neuron: Neuron) -> Tensor:
    """Spikes ``[T, n, ...]`` of membranes before the reset."""
    return torch.sub(u, neuron.v_threshold).ge_(0)


def backward(
    grad: Tensor, u: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, into: Tensor | None = None
) -> Tensor | None:
    """Gradient of the neuron's input.

    Args:
        grad: of the spikes, ``[T, n, ...]``, any layout.
        u: membranes before the reset; used up.
        v0: as in :func:`charge_and_fire`.
        q: as in :func:`charge_and_fire`.
        neuron: the constants.
        into: where the gradient goes; may be ``grad``. None: over ``u``.

    Returns:
        The gradient of ``q``, a scalar, where there is one.
    """
    if fused(u) and (into is None or into.stride()[1:] == u.stride()[1:]):
        from methods.kernels import stream_triton

        if stream_triton.knows(neuron):
            return stream_triton.backward(grad, u, v0, q, neuron, into)
    carry = torch.zeros_like(u[0])
    total = None if q is None else u.new_zeros((), dtype=torch.promote_types(u.dtype, torch.float32))
    for t in reversed(steps(u)):
        d = _membrane_gradient(grad[t], carry, u[t], neuron)
        if q is not None and total is not None:
            previous = _after_reset(u[t - 1], neuron) if t else v0
            total.add_(_rate_gradient(d, u[t], previous, q, neuron))
        carry = _uncharge(d, q, neuron, grad_x=u[t] if into is None else into[t])
    return total


def _charge_(x: Tensor, v: Tensor, q: Tensor | None, neuron: Neuron, spare: Tensor) -> None:
    """``x`` becomes ``u``; the same operators on the same numbers as ``lif_torch._charge``."""
    if neuron.tau is None and q is None:
        x.add_(v)
        return
    above = v - neuron.v_reset if neuron.v_reset else v
    if neuron.decay_input:
        x.sub_(above)
        (x.div_(neuron.tau) if q is None else x.mul_(q)).add_(v)  # type: ignore[arg-type]
        return
    spare.copy_(above)
    spare.div_(neuron.tau) if q is None else spare.mul_(q)  # type: ignore[arg-type]
    x.add_(torch.sub(v, spare, out=spare))
