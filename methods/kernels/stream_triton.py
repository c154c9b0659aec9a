"""The kernels of :mod:`methods.kernels.lif_stream` in Triton: normalisation, neuron and packing in one pass.

One launch reads the convolution's output once and writes what is wanted of it: the spikes as bits straight into their
rows (:mod:`methods.streaming.rows`), the spikes as they are, the membranes (over the input, if that is used up). The
equations and where they round are those of :mod:`methods.kernels.lif_triton`; the normalisation rounds after the product
and after the sum, in single precision at least, as ``lif_stream.Affine`` does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels import lif_triton
from methods.kernels.lif_stream import Affine
from methods.kernels.lif_torch import Neuron
from methods.kernels.lif_triton import BLOCK, _after_reset, _charge, _constants
from methods.kernels.triton_support import ALGEBRA, WIDE, on, rounded


def fits(y: Tensor) -> bool:
    """True where every step of ``y [T, n, C, ...]`` lies contiguously in memory."""
    return y.dtype in WIDE and y.numel() > 0 and y[0].is_contiguous()


def knows(neuron: Neuron) -> bool:
    """True where the backward kernel has the surrogate's formula."""
    return type(neuron.surrogate).__name__ in lif_triton.SURROGATES


def charge_and_fire(
    y: Tensor,
    u: Tensor | None,
    affine: Affine | None,
    v0: Tensor | float,
    q: Tensor | None,
    neuron: Neuron,
    spikes: Tensor | None = None,
    bits: Tensor | None = None,
) -> None:
    """Membranes, spikes and bits of all steps, as far as they are wanted.

    Args:
        y: input ``[T, n, ...]`` that :func:`fits`, before the normalisation where there is one.
        u: where the membranes go, of ``y``'s layout; may be ``y``.
        affine: the normalisation, or None.
        v0: initial membrane, ``[n, ...]`` or a number.
        q: PLIF's ``1 / tau``, or None.
        neuron: the constants.
        spikes: where spikes go, ``[T, n, ...]`` in ``y``'s dtype, steps contiguous.
        bits: ``uint8 [n, T ceil(M / 8)]``, contiguous, for ``M`` elements a step of a sample.
    """
    steps, samples = y.shape[:2]
    size = y[0, 0].numel()
    rows, run = (8, -(-size // 8)) if bits is not None else (1, size)
    block = max(16, BLOCK // rows)
    tiles = triton.cdiv(run, block)
    start = v0.to(y.dtype).contiguous() if isinstance(v0, Tensor) else y
    scale, shift, per_step = y, y, 0
    if affine is not None:
        scale, shift = affine.scale.contiguous(), affine.shift.contiguous()
        per_step = scale.shape[2] if scale.shape[0] > 1 else 0
    with on(y.device):
        _fire[(samples * tiles,)](
            y, start, y if q is None else q, scale, shift, y if u is None else u, y if spikes is None else spikes,
            y if bits is None else bits, size, run, tiles, y.stride(0), 0 if u is None else u.stride(0),
            0 if spikes is None else spikes.stride(0), per_step, max(1, size // y.shape[2]) if y.dim() > 2 else 1,
            T=steps, **_constants(neuron, q, y, v0), AFFINE=affine is not None, KEEP=u is not None,
            SPIKES=spikes is not None, BITS=bits is not None, ROWS=rows, BLOCK=block, **ALGEBRA,
        )  # fmt: skip


def backward(
    grad: Tensor, u: Tensor, v0: Tensor | float, q: Tensor | None, neuron: Neuron, into: Tensor | None
) -> Tensor | None:
    """See :func:`methods.kernels.lif_stream.backward`."""
    _, _, total = lif_triton.backward(grad, None, u, v0, q, neuron, into)
    return None if total is None else total.to(torch.promote_types(u.dtype, torch.float32))


@triton.jit
def _fire(
    y_ptr, v0_ptr, q_ptr, scale_ptr, shift_ptr, u_ptr, spikes_ptr, bits_ptr,
    size, run, tiles, y_step, u_step, spikes_step, affine_step, inner, T: tl.constexpr,
    MODE: tl.constexpr, SCALE: tl.constexpr, LEARNT: tl.constexpr, NARROW: tl.constexpr, DECAY_INPUT: tl.constexpr,
    THRESHOLD: tl.constexpr, LEVEL: tl.constexpr, SOFT: tl.constexpr, RESET: tl.constexpr, START: tl.constexpr,
    COMPUTE: tl.constexpr,
    AFFINE: tl.constexpr, KEEP: tl.constexpr, SPIKES: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    KIND: tl.constexpr = y_ptr.dtype.element_ty
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    j = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    # Eight rows of a tile make the eight bits of a byte; without bits there is one.
    inside = j[None, :] + row[:, None] * run
    mask = (j[None, :] < run) & (inside < size)
    place = inside + sample * size
    channel = inside // inner
    bits_ptr += sample * T * run
    q = SCALE
    if LEARNT:
        q = tl.load(q_ptr).to(COMPUTE)
        if NARROW:
            q = rounded(q, KIND, COMPUTE)
    if START is None:
        v = tl.load(v0_ptr + place, mask=mask, other=0).to(COMPUTE)
    else:
        v = rounded(tl.full([ROWS, BLOCK], START, COMPUTE), KIND, COMPUTE)
    for _ in range(T):
        x = tl.load(y_ptr + place, mask=mask, other=0).to(COMPUTE)
        if AFFINE:
            scale = tl.load(scale_ptr + channel, mask=mask, other=0).to(COMPUTE)
            shift = tl.load(shift_ptr + channel, mask=mask, other=0).to(COMPUTE)
            x = rounded(x * scale + shift, KIND, COMPUTE)
            scale_ptr += affine_step
            shift_ptr += affine_step
        u = _charge(x, v, q, MODE, SCALE, DECAY_INPUT, RESET, KIND, COMPUTE)
        s, v = _after_reset(u, THRESHOLD, LEVEL, SOFT, RESET, KIND, COMPUTE)
        if KEEP:
            tl.store(u_ptr + place, u.to(KIND), mask=mask)
            u_ptr += u_step
        if SPIKES:
            tl.store(spikes_ptr + place, s.to(KIND), mask=mask)
            spikes_ptr += spikes_step
        if BITS:
            fired = tl.where(mask, s, 0).to(tl.int32) << row[:, None]
            tl.store(bits_ptr + j, tl.sum(fired, axis=0).to(tl.uint8), mask=j < run)
            bits_ptr += run
        y_ptr += y_step
