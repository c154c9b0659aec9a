"""LIF, IF and PLIF over a whole sequence as Triton kernels: one launch a pass, a thread keeps its membrane in registers.

The equations, their order and where they round are those of :mod:`methods.kernels.lif_torch`, so the two give the same
spikes and membranes in every dtype; a device divides by ``tau`` as torch does there, by way of the reciprocal. In the
backward half precision is kept in single precision between the steps, where torch rounds it at every one.

Both passes can put an affine map before the neuron, ``y = a[c] x + b[c]`` in single precision and rounded once, as a
batch normalisation with its statistics folded into ``a`` and ``b`` does, and the forward can write its spikes as bits.

Any input whose time steps lie densely in memory is read as it lies (channels last, a step repeated over time);
others are copied first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels import lif_torch
from methods.kernels.affine_lif import Affine
from methods.kernels.lif_torch import Neuron
from methods.kernels.triton_support import ALGEBRA, WIDE, blocks, is_dense, on, rounded

NAME = "triton"
"""Name of this implementation in a record's plan."""
BLOCK = 512
"""Elements of a step that one program carries through time (our choice: 4 warps, 4 elements a thread)."""
SURROGATES = {
    "Sigmoid": 0, "ATan": 1, "PiecewiseQuadratic": 2, "PiecewiseExp": 3, "SoftSign": 4, "SuperSpike": 5, "Erf": 6,
}  # fmt: skip
"""Surrogates by their class's name in SpikingJelly; others go through torch."""


def forward(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spikes, the last membrane and, on request, the membranes before the reset: see ``lif_torch.forward``."""
    x = steps(x)
    spikes, u = like(x), like(x) if keep else None
    return spikes, _forward(x, v0, q, neuron, None, spikes, u, None), u


def membranes(x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, affine: Affine | None = None) -> Tensor:
    """The membranes before the reset, ``u [T, N, ...]``, once more."""
    x = steps(x)
    u = like(x)
    _forward(x, v0, q, neuron, affine, None, u, None)
    return u


def spikes_after(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, affine: Affine
) -> tuple[Tensor, Tensor]:
    """Spikes and the last membrane of ``scale x + shift``."""
    x = steps(x)
    spikes = like(x)
    return spikes, _forward(x, v0, q, neuron, affine, spikes, None, None)


def packed(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, affine: Affine | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes as bits, ``uint8 [T, ceil(M / 8)]`` for ``M`` elements a step, each step as ``packing`` packs it.

    Returns:
        The bits, the last membrane, and the input as it was read (its layout is the spikes').
    """
    x = steps(x)
    bits = torch.empty((x.shape[0], -(-x[0].numel() // 8)), dtype=torch.uint8, device=x.device)
    return bits, _forward(x, v0, q, neuron, affine, None, None, bits), x


def backward(
    grad: Tensor | None,
    grad_v: Tensor | None,
    u: Tensor,
    v0: Tensor | float,
    q: Tensor | None,
    neuron: Neuron,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a :func:`forward`; ``u``'s memory becomes the input's gradient: see ``lif_torch.backward``.

    Args:
        grad: of the spikes, ``[T, N, ...]``.
        grad_v: of the last membrane, ``[N, ...]``.
        u: membranes before the reset; used up.
        v0: initial membrane.
        q: PLIF's ``1 / tau``, or None.
        neuron: the constants.
        into: takes the input's gradient instead of ``u``; its steps lie as ``u``'s do. It may be ``grad``.
    """
    kind = SURROGATES.get(type(neuron.surrogate).__name__)
    if kind is None or not is_dense(u[0]):
        found = lif_torch.backward(grad, grad_v, u, v0, q, neuron)
        return found if into is None else (into.copy_(found[0]), *found[1:])
    count = u[0].numel()
    grad_v0 = torch.empty_strided(u.shape[1:], u.stride()[1:], dtype=u.dtype, device=u.device)
    out = u if into is None else into
    if count == 0:
        return out, grad_v0, None if q is None else torch.zeros_like(q)
    upward, step, inner = _readable(grad, u)
    grid = blocks(count, BLOCK)
    wide = torch.promote_types(u.dtype, torch.float32)
    sums = u if q is None else torch.empty(grid, dtype=wide, device=u.device)
    start = _aligned(v0, u[0]) if isinstance(v0, Tensor) else u
    with on(u.device):
        _backward_kernel[grid](
            upward, u if grad_v is None else _aligned(grad_v, u[0]), u, start, u if q is None else q, out, grad_v0, sums,
            count, step, (u.shape[0] - 1) * step, u.stride(0), (u.shape[0] - 1) * u.stride(0),
            out.stride(0), (u.shape[0] - 1) * out.stride(0), T=u.shape[0],
            **_constants(neuron, q, u, v0), GRAD=grad is not None, GRAD_V=grad_v is not None, INNER=inner,
            DETACH=neuron.detach_reset, ALPHA=float(neuron.surrogate.alpha), SURROGATE=kind, BLOCK=BLOCK, **ALGEBRA,
        )  # fmt: skip
    return out, grad_v0, None if q is None else _rate(sums.sum(), q, neuron)


def steps(x: Tensor) -> Tensor:
    """``x``, copied where the elements of a time step do not lie densely."""
    return x if is_dense(x[0]) else x.contiguous()


def like(x: Tensor) -> Tensor:
    """An empty tensor ``[T, N, ...]`` whose steps lie as ``x``'s do, one after the other."""
    strides = (x[0].numel(), *x.stride()[1:])
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def _forward(
    x: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, affine: Affine | None, spikes: Tensor | None,
    u: Tensor | None, bits: Tensor | None,
) -> Tensor:  # fmt: skip
    """Fill what is given of spikes, membranes and bits; returns the last membrane."""
    count = x[0].numel()
    v = torch.empty_strided(x.shape[1:], x.stride()[1:], dtype=x.dtype, device=x.device)
    if count == 0:
        return v
    rows, run = (8, -(-count // 8)) if bits is not None else (1, count)
    channels, period = (1, 1) if affine is None else _channels(x, affine)
    block = max(16, BLOCK // rows)
    with on(x.device):
        _forward_kernel[blocks(run, block)](
            x, _aligned(v0, x[0]) if isinstance(v0, Tensor) else x, x if q is None else q,
            x if affine is None else affine.scale, x if affine is None else affine.shift,
            x if spikes is None else spikes, x if u is None else u, x if bits is None else bits, v,
            count, run, x.stride(0), channels, period, T=x.shape[0],
            **_constants(neuron, q, x, v0), AFFINE=affine is not None, SPIKES=spikes is not None, KEEP=u is not None,
            BITS=bits is not None, ROWS=rows, BLOCK=block, **ALGEBRA,
        )  # fmt: skip
    return v


def _constants(neuron: Neuron, q: Tensor | None, x: Tensor, v0: Tensor | float) -> dict[str, Any]:
    """The neuron as compile-time numbers: they differ little, and Triton would pass a float in single precision."""
    mode, scale = "multiply" if q is not None else "none", 1.0
    if neuron.tau is not None and q is None:
        mode, scale = "divide", float(neuron.tau)
        if x.device.type == "cuda":  # torch's kernel for a division by a number there
            one = np.float64(1) if x.dtype == torch.float64 else np.float32(1)
            mode, scale = "multiply", float(one / type(one)(neuron.tau))
    threshold, reset = float(neuron.v_threshold), float(neuron.v_reset or 0.0)
    # In half precision a CPU rounds numbers that are added or subtracted, and not a scalar tensor that multiplies; on a
    # GPU it is the other way round (torch's BinaryOpsKernel.cpp, BinaryMulKernel.cu, Loops.cuh).
    if x.device.type == "cpu":
        threshold, reset = (float(torch.tensor(value, dtype=torch.float64).to(x.dtype)) for value in (threshold, reset))
    return {
        "MODE": mode, "SCALE": scale, "LEARNT": q is not None, "NARROW": x.device.type != "cpu",
        "DECAY_INPUT": neuron.decay_input, "THRESHOLD": threshold, "LEVEL": float(neuron.v_threshold),
        "SOFT": neuron.v_reset is None, "RESET": reset, "START": None if isinstance(v0, Tensor) else float(v0),
        "COMPUTE": WIDE[x.dtype],
    }  # fmt: skip


def _channels(x: Tensor, affine: Affine) -> tuple[int, int]:
    """``(C, period)``: the element at place ``i`` of a step in memory is of channel ``i // period % C``."""
    step = x[0]
    channels, period = step.shape[affine.dim], step.stride(affine.dim)
    return channels, 1 if channels == 1 else period


def _aligned(value: Tensor, like: Tensor) -> Tensor:
    """``value`` with the strides of ``like``, copied where it has others."""
    if value.stride() == like.stride() and value.dtype == like.dtype:
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device).copy_(value)


def _readable(grad: Tensor | None, u: Tensor) -> tuple[Tensor, int, int]:
    """A gradient of ``u``'s shape as the kernel reads it: its memory, a step's stride, an element's stride."""
    if grad is None:
        return u, 0, 0
    inner = grad.stride()[1:]
    if inner == u.stride()[1:]:
        return grad, grad.stride(0), 1
    if not any(inner):
        return grad, grad.stride(0), 0  # an expanded number, as a mean's gradient is
    copy = torch.empty_strided(u.shape, u.stride(), dtype=grad.dtype, device=u.device).copy_(grad)
    return copy, copy.stride(0), 1


def _rate(total: Tensor, q: Tensor, neuron: Neuron) -> Tensor:
    """Gradient of ``q`` from the sum over all elements and steps."""
    return (total / q if neuron.decay_input else total).to(q.dtype)


@triton.jit
def _charge(
    x, v, q, MODE: tl.constexpr, SCALE: tl.constexpr, DECAY_INPUT: tl.constexpr, RESET: tl.constexpr,
    KIND: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    if MODE == "none":
        return rounded(v + x, KIND, COMPUTE)
    else:
        above = v
        if RESET != 0:
            above = rounded(v - RESET, KIND, COMPUTE)
        if DECAY_INPUT:
            drive = _scaled(rounded(x - above, KIND, COMPUTE), q, MODE, SCALE, KIND, COMPUTE)
            return rounded(drive + v, KIND, COMPUTE)
        else:
            leak = _scaled(above, q, MODE, SCALE, KIND, COMPUTE)
            return rounded(rounded(v - leak, KIND, COMPUTE) + x, KIND, COMPUTE)


@triton.jit
def _scaled(value, q, MODE: tl.constexpr, SCALE: tl.constexpr, KIND: tl.constexpr, COMPUTE: tl.constexpr):
    if MODE == "divide":
        scale = tl.full(value.shape, SCALE, COMPUTE)
        if COMPUTE == tl.float32:
            result = tl.div_rn(value, scale)
        else:
            result = value / scale
    else:
        result = value * q
    return rounded(result, KIND, COMPUTE)


@triton.jit
def _after_reset(
    u, THRESHOLD: tl.constexpr, LEVEL: tl.constexpr, SOFT: tl.constexpr, RESET: tl.constexpr, KIND: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """The spike and the membrane after the reset."""
    s = (rounded(u - THRESHOLD, KIND, COMPUTE) >= 0).to(COMPUTE)
    if SOFT:
        v = rounded(u - rounded(s * LEVEL, KIND, COMPUTE), KIND, COMPUTE)
    else:
        v = rounded(u - u * s, KIND, COMPUTE)
        if RESET != 0:
            v = rounded(v + s * RESET, KIND, COMPUTE)
    return s, v


@triton.jit
def _slope(z, ALPHA: tl.constexpr, SURROGATE: tl.constexpr):
    """The surrogate's derivative (``spikingjelly.activation_based.surrogate``)."""
    if SURROGATE == 0:
        s = 1.0 / (1.0 + tl.exp(-ALPHA * z))
        return (1.0 - s) * s * ALPHA
    elif SURROGATE == 1:
        y = z * (1.5707963267948966 * ALPHA)
        return (0.5 * ALPHA) / (1.0 + y * y)
    elif SURROGATE == 2:
        return tl.maximum(ALPHA - ALPHA * ALPHA * tl.abs(z), 0.0)
    elif SURROGATE == 3:
        return (0.5 * ALPHA) * tl.exp(-ALPHA * tl.abs(z))
    elif SURROGATE == 4:
        y = 1.0 / ALPHA + tl.abs(z)
        return 1.0 / (2.0 * ALPHA * y * y)
    elif SURROGATE == 5:
        y = 1.0 + tl.abs(z)
        return ALPHA / (y * y)
    else:
        y = ALPHA * z
        return (0.5641895835477563 * ALPHA) * tl.exp(-y * y)


@triton.jit
def _forward_kernel(
    x_ptr, v0_ptr, q_ptr, scale_ptr, shift_ptr, spikes_ptr, u_ptr, bits_ptr, v_ptr,
    count, run, x_step, channels, period, T: tl.constexpr,
    MODE: tl.constexpr, SCALE: tl.constexpr, LEARNT: tl.constexpr, NARROW: tl.constexpr, DECAY_INPUT: tl.constexpr,
    THRESHOLD: tl.constexpr, LEVEL: tl.constexpr, SOFT: tl.constexpr, RESET: tl.constexpr, START: tl.constexpr,
    COMPUTE: tl.constexpr,
    AFFINE: tl.constexpr, SPIKES: tl.constexpr, KEEP: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    KIND: tl.constexpr = x_ptr.dtype.element_ty
    # Eight rows of a tile make the eight bits of a byte; without bits there is one.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    place = j[None, :] + row[:, None].to(tl.int64) * run
    mask = (j[None, :] < run) & (place < count)
    q = SCALE
    if LEARNT:
        q = tl.load(q_ptr).to(COMPUTE)
        if NARROW:
            q = rounded(q, KIND, COMPUTE)
    if AFFINE:
        channel = (place // period) % channels
        scale = tl.load(scale_ptr + channel, mask=mask, other=0).to(COMPUTE)
        shift = tl.load(shift_ptr + channel, mask=mask, other=0).to(COMPUTE)
    if START is None:
        v = tl.load(v0_ptr + place, mask=mask, other=0).to(COMPUTE)
    else:
        v = rounded(tl.full([ROWS, BLOCK], START, COMPUTE), KIND, COMPUTE)
    for _ in range(T):
        x = tl.load(x_ptr + place, mask=mask, other=0).to(COMPUTE)
        if AFFINE:
            x = rounded(x * scale + shift, KIND, COMPUTE)
        u = _charge(x, v, q, MODE, SCALE, DECAY_INPUT, RESET, KIND, COMPUTE)
        s, v = _after_reset(u, THRESHOLD, LEVEL, SOFT, RESET, KIND, COMPUTE)
        if KEEP:
            tl.store(u_ptr + place, u.to(KIND), mask=mask)
            u_ptr += count
        if SPIKES:
            tl.store(spikes_ptr + place, s.to(KIND), mask=mask)
            spikes_ptr += count
        if BITS:
            fired = tl.where(mask, s, 0).to(tl.int32) << row[:, None]
            tl.store(bits_ptr + j, tl.sum(fired, axis=0).to(tl.uint8), mask=j < run)
            bits_ptr += run
        x_ptr += x_step
    tl.store(v_ptr + place, v.to(KIND), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_v_ptr, u_ptr, v0_ptr, q_ptr, out_ptr, grad_v0_ptr, sums_ptr,
    count, grad_step, grad_last, u_step, u_last, out_step, out_last, T: tl.constexpr,
    MODE: tl.constexpr, SCALE: tl.constexpr, LEARNT: tl.constexpr, NARROW: tl.constexpr, DECAY_INPUT: tl.constexpr,
    THRESHOLD: tl.constexpr, LEVEL: tl.constexpr, SOFT: tl.constexpr, RESET: tl.constexpr, START: tl.constexpr,
    COMPUTE: tl.constexpr,
    GRAD: tl.constexpr, GRAD_V: tl.constexpr, INNER: tl.constexpr, DETACH: tl.constexpr, ALPHA: tl.constexpr,
    SURROGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    KIND: tl.constexpr = u_ptr.dtype.element_ty
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    q = SCALE
    if LEARNT:
        q = tl.load(q_ptr).to(COMPUTE)
        if NARROW:
            q = rounded(q, KIND, COMPUTE)
        total = tl.zeros([BLOCK], COMPUTE)
        if START is None:
            first = tl.load(v0_ptr + place, mask=mask, other=0).to(COMPUTE)
        else:
            first = rounded(tl.full([BLOCK], START, COMPUTE), KIND, COMPUTE)
    carry = tl.zeros([BLOCK], COMPUTE)
    if GRAD_V:
        carry = tl.load(grad_v_ptr + place, mask=mask, other=0).to(COMPUTE)
    u_ptr += u_last
    out_ptr += out_last
    grad_ptr += grad_last
    u = tl.load(u_ptr + place, mask=mask, other=0).to(COMPUTE)
    for left in range(T):
        # Read before this step's place is written: the step before starts from it.
        before = tl.load(u_ptr - u_step + place, mask=mask & (left + 1 < T), other=0).to(COMPUTE)
        z = rounded(u - THRESHOLD, KIND, COMPUTE)
        upward = tl.zeros([BLOCK], COMPUTE)
        if GRAD:
            upward = tl.load(grad_ptr + place * INNER, mask=mask, other=0).to(COMPUTE)
        if not DETACH:
            if SOFT:
                upward -= carry * LEVEL
            else:
                upward += carry * (RESET - u)
        if not SOFT:
            carry = tl.where(z < 0, carry, 0.0)
        d = carry + upward * _slope(z, ALPHA, SURROGATE)
        if LEARNT:
            _, previous = _after_reset(before, THRESHOLD, LEVEL, SOFT, RESET, KIND, COMPUTE)
            previous = tl.where(left + 1 < T, previous, first)
            if DECAY_INPUT:
                total += tl.where(mask, d * (u - previous), 0.0)
            else:
                total += tl.where(mask, d * (RESET - previous), 0.0)
        down = d
        if MODE == "none":
            carry = d
        else:
            leak = _scaled(d, q, MODE, SCALE, COMPUTE, COMPUTE)
            if DECAY_INPUT:
                down = leak
            carry = d - leak
        tl.store(out_ptr + place, rounded(down, KIND, COMPUTE).to(KIND), mask=mask)
        u = before
        u_ptr -= u_step
        out_ptr -= out_step
        grad_ptr -= grad_step
    tl.store(grad_v0_ptr + place, rounded(carry, KIND, COMPUTE).to(KIND), mask=mask)
    if LEARNT:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(total, axis=0))
