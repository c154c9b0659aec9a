"""The fused neuron as one node of the autograd graph: forward and backward over the whole sequence at once.

It keeps one tensor of the input's size, either way: the membranes ``u[t]`` before the reset (``membrane``), or the
input, from which the backward computes ``u`` again (``input``). Not the spikes: they are ``u[t] >= Vth``. In the
backward the membranes' memory becomes the input's gradient.

``membrane`` makes the tensor that it keeps, ``input`` keeps one that exists already: one tensor less while the forward
runs, as much after it, unless another operator keeps the input as well: then ``input`` keeps nothing of its own.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness import ledger
from methods.kernels import lif_torch
from methods.kernels.choice import triton_at
from methods.kernels.lif_torch import Neuron
from methods.packing import RAW, pack, unpack

Save = Literal["membrane", "input"]


def kernel(device: torch.device) -> ModuleType:
    """The implementation for ``device``: a module with the names of ``lif_torch``."""
    if triton_at(device):
        from methods.kernels import lif_triton

        return lif_triton
    return lif_torch


def sequence(x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, save: Save) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, N, ...]`` and the last membrane ``[N, ...]`` of an input ``[T, N, ...]``.

    Args:
        x: the input.
        v0: initial membrane, ``[N, ...]`` in ``x``'s dtype, or a number.
        q: PLIF's ``1 / tau``, a scalar tensor; None otherwise.
        neuron: the constants.
        save: what the backward starts from.
    """
    inputs = (value for value in (x, v0, q) if isinstance(value, Tensor))
    if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
        return _Sequence.apply(x, v0, q, neuron, save)
    with ledger.kernel(2 * x.nbytes):  # x and s
        spikes, v, _ = kernel(x.device).forward(x, v0, q, neuron, keep=False)
    return spikes, v


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, save: Save
    ) -> tuple[Tensor, Tensor]:
        keep = save == "membrane"
        with ledger.kernel((3 if keep else 2) * x.nbytes):  # x, s and, where it is kept, u
            spikes, v, u = kernel(x.device).forward(x, v0, q, neuron, keep=keep)
        # Attributes, not saved_tensors: those stay alive until the backward is over.
        ctx.kept, ctx.q, ctx.neuron = pack(x, RAW) if u is None else u, q, neuron
        ctx.v0 = v0 if u is None or q is not None else 0.0
        ctx.set_materialize_grads(False)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError("second backward through a fused neuron: the first used up what it had saved")
        if isinstance(kept, Tensor):
            u, device = kept, kept.device
        else:
            x, device = unpack(kept), kept.payload.device
            with ledger.kernel(2 * x.nbytes):  # x, u
                u = kernel(device).membranes(x, ctx.v0, ctx.q, ctx.neuron)
            del x
        del kept
        with ledger.kernel(3 * u.nbytes):  # g, u and the input's gradient
            grad_x, grad_v0, grad_q = kernel(device).backward(grad, grad_v, u, ctx.v0, ctx.q, ctx.neuron)
        needs_x, needs_v0, *_ = ctx.needs_input_grad
        return grad_x if needs_x else None, grad_v0 if needs_v0 else None, grad_q, None, None
