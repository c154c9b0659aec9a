"""An affine map and a neuron over a whole sequence as one operator, and spikes that never exist wider than a bit.

``y[t] = a[c] x[t] + b[c]``, then LIF, IF or PLIF as in :mod:`methods.kernels.lif_torch`. A batch normalisation is such
a map once its statistics are known: ``a = weight * rstd``, ``b = bias - mean * a``; where they are computed from ``x``,
autograd takes care of it through ``a`` and ``b``.

Kept for the backward: ``x`` alone. It computes the membranes once more, turns their memory into the gradient of ``y``
and, in the same place, of ``x``: no tensor of the sequence's size but these two. With ``g`` the gradient of ``y``::

    grad_b[c] = sum g        grad_a[c] = sum g x        grad_x = a[c] g
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.kernels import lif_torch
from methods.kernels.choice import triton_at
from methods.kernels.lif_torch import Neuron
from methods.packing import RAW, Packed, pack, unpack


@dataclass(frozen=True)
class Affine:
    """A map ``y = scale[c] x + shift[c]``.

    Args:
        scale: ``[C]``, float32 (float64 for a float64 input).
        shift: ``[C]``, likewise.
        dim: the channels' dimension of a step ``[N, C, ...]``; 0 is ``N``.
    """

    scale: Tensor
    shift: Tensor
    dim: int = 1

    def over(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they broadcast over a step, and over a sequence of steps."""
        shape = [-1 if dim == self.dim else 1 for dim in range(step.dim())]
        return self.scale.view(shape), self.shift.view(shape)


@dataclass(frozen=True)
class Bits:
    """Spikes of a sequence, one bit each.

    Args:
        payload: ``uint8 [T, ceil(M / 8)]`` for ``M`` elements a step; each row is a payload of :mod:`methods.packing`.
        shape: of one step.
        stride: of one step when unpacked.
        dtype: of the spikes.
    """

    payload: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def step(self, t: int) -> Tensor:
        """Spikes of one step, ``[N, ...]``."""
        return unpack(Packed(1, self.shape, self.stride, self.dtype, self.payload[t]))

    def dense(self) -> Tensor:
        """Spikes of all steps, ``[T, N, ...]``."""
        return torch.stack([self.step(t) for t in range(len(self.payload))])


def sequence(x: Tensor, affine: Affine, v0: Tensor | float, q: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, N, ...]`` and the last membrane ``[N, ...]``; differentiable.

    Args:
        x: input ``[T, N, ...]``.
        affine: the map before the neuron.
        v0: initial membrane, ``[N, ...]`` in ``x``'s dtype, or a number.
        q: PLIF's ``1 / tau``, a scalar tensor; None otherwise.
        neuron: the constants.
    """
    spikes, v = _AffineNeuron.apply(x, affine.scale, affine.shift, v0, q, neuron, affine.dim)
    return spikes, v


@torch.no_grad()
def packed(
    x: Tensor, affine: Affine | None, v0: Tensor | float, q: Tensor | None, neuron: Neuron
) -> tuple[Bits, Tensor]:
    """Spikes as bits and the last membrane; nothing is kept for a backward. Arguments as in :func:`sequence`."""
    if triton_at(x.device):
        from methods.kernels import lif_triton

        payload, v, x = lif_triton.packed(x, v0, q, neuron, affine)
        return Bits(payload, x[0].shape, x[0].stride(), x.dtype), v
    spikes, v, _ = lif_torch.forward(x if affine is None else _mapped(x, affine), v0, q, neuron, keep=False)
    rows = [pack(step, 1) for step in spikes]
    return Bits(torch.stack([row.payload for row in rows]), rows[0].shape, rows[0].stride, x.dtype), v


def _mapped(x: Tensor, affine: Affine) -> Tensor:
    scale, shift = affine.over(x[0])
    return (x * scale + shift).to(x.dtype)


def _run(x: Tensor, affine: Affine, v0: Tensor | float, q: Tensor | None, neuron: Neuron) -> tuple[Tensor, Tensor]:
    if triton_at(x.device):
        from methods.kernels import lif_triton

        return lif_triton.spikes_after(x, v0, q, neuron, affine)
    spikes, v, _ = lif_torch.forward(_mapped(x, affine), v0, q, neuron, keep=False)
    return spikes, v


def _through_neuron(
    grad: Tensor | None, grad_v: Tensor | None, x: Tensor, affine: Affine, v0: Tensor | float, q: Tensor | None,
    neuron: Neuron,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of ``y``, ``v0`` and ``q``, from membranes that are computed once more."""
    if triton_at(x.device):
        from methods.kernels import lif_triton

        u = lif_triton.membranes(x, v0, q, neuron, affine)
        return lif_triton.backward(grad, grad_v, u, v0, q, neuron)
    u = lif_torch.membranes(_mapped(x, affine), v0, q, neuron)
    return lif_torch.backward(grad, grad_v, u, v0, q, neuron)


class _AffineNeuron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        v0: Tensor | float,
        q: Tensor | None,
        neuron: Neuron,
        dim: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.affine, ctx.neuron, ctx.v0, ctx.q = Affine(scale.detach(), shift.detach(), dim), neuron, v0, q
        ctx.kept = pack(x, RAW)
        ctx.set_materialize_grads(False)
        return _run(x.detach(), ctx.affine, v0, q, neuron)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        x, affine = unpack(ctx.kept), ctx.affine
        down, grad_v0, grad_q = _through_neuron(grad, grad_v, x, affine, ctx.v0, ctx.q, ctx.neuron)
        scale, _ = affine.over(x[0])
        wide = scale.dtype
        others = [dim for dim in range(x.dim() - 1) if dim != affine.dim]
        grad_scale, grad_shift = (torch.zeros_like(affine.scale) for _ in range(2))
        for t in range(x.shape[0]):
            share = down[t].to(wide)
            grad_shift += share.sum(others)
            grad_scale += (share * x[t]).sum(others)
            down[t].mul_(scale)
        needs_x, *_ = ctx.needs_input_grad
        grad_v0 = grad_v0 if ctx.needs_input_grad[3] else None  # type: ignore[assignment]
        return down if needs_x else None, grad_scale, grad_shift, grad_v0, grad_q, None, None
