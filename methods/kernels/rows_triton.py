"""Rows of :mod:`methods.streaming.rows` by one Triton kernel: packing, unpacking, and the sum of two values.

A row is one step of one sample: ``w ceil(n / 8)`` bytes for its ``n`` elements. The kernel reads each element of its one
or two inputs once, packed or raw, adds, and writes each element once, packed or raw; nothing else is allocated.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.triton_support import WIDE, on, rounded

BLOCK = 256
"""Elements of each of the eight runs that one program moves (our choice: 4 warps, 16 elements a thread)."""
KINDS = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def pack(x: Tensor, payload: Tensor, width: int, violations: Tensor | None) -> None:
    """Samples ``x [T, n, ...]`` of a floating dtype into ``payload``.

    Args:
        x: any layout; copied unless every step of a sample lies contiguously.
        payload: ``uint8 [n, T width ceil(M / 8)]``, contiguous, for ``M`` elements a step of a sample.
        width: 1, 2, 4 or 8 bits per element.
        violations: integer scalar on the same device, raised by the number of elements that the width cannot hold, whose
            code is 0; None: not counted.
    """
    x = readable(x)
    move(x.shape, x.dtype, (x, 0), None, (payload, width), violations)


def unpack(payload: Tensor, out: Tensor, width: int) -> None:
    """The inverse of :func:`pack`, into a contiguous ``out [T, n, ...]``."""
    move(out.shape, out.dtype, (payload, width), None, (out, 0), None)


def add(
    one: tuple[Tensor, int], two: tuple[Tensor, int], out: tuple[Tensor, int], shape: tuple[int, ...],
    dtype: torch.dtype, violations: Tensor,
) -> None:  # fmt: skip
    """``out = one + two``, each a memory and its width as in :func:`move`; raw inputs may have any layout."""
    one, two = ((memory, width) if width else (readable(memory), 0) for memory, width in (one, two))
    move(shape, dtype, one, two, out, violations)


def readable(x: Tensor) -> Tensor:
    """``x [T, n, ...]``, copied where the steps of its samples do not lie contiguously."""
    return x if x.numel() == 0 or x[0, 0].is_contiguous() else x.contiguous()


def move(
    shape: torch.Size | tuple[int, ...], dtype: torch.dtype, one: tuple[Tensor, int], two: tuple[Tensor, int] | None,
    out: tuple[Tensor, int], violations: Tensor | None,
) -> None:  # fmt: skip
    """``out = one``, or ``one + two`` rounded to ``dtype``; each a memory and its width, 0 where it is raw.

    Args:
        shape: ``[T, n, ...]``.
        dtype: of the sum.
        one: payload ``[n, bytes]``, or values ``[T, n, ...]`` as :func:`readable` gives them.
        two: likewise, or None.
        out: likewise; raw values may have any strides over ``T`` and ``n``.
        violations: as in :func:`pack`.
    """
    size, rows = math.prod(shape[2:]), shape[0] * shape[1]
    if size == 0 or rows == 0:
        return
    run = -(-size // 8)
    tiles = triton.cdiv(run, BLOCK)
    values = (one, one if two is None else two, out)
    strides = [place for value in values for place in _strides(*value, run)]
    with on(out[0].device):
        _move[(rows * tiles,)](
            one[0], values[1][0], out[0], out[0] if violations is None else violations, size, run, tiles, shape[0],
            *strides, ONE=one[1], TWO=-1 if two is None else two[1], OUT=out[1], CHECK=violations is not None,
            KIND=KINDS[dtype], COMPUTE=WIDE[dtype], BLOCK=BLOCK,
        )  # fmt: skip


def _strides(memory: Tensor, width: int, run: int) -> tuple[int, int]:
    """Of a step and of a sample, in elements or bytes."""
    return (memory.stride(0), memory.stride(1)) if width == 0 else (width * run, memory.stride(0))


@triton.jit
def _read(ptr, j, k: tl.constexpr, size, run, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """Elements ``k run + j`` of a row."""
    if WIDTH == 0:
        place = j + k * run
        return tl.load(ptr + place, mask=(j < run) & (place < size), other=0).to(COMPUTE)
    else:
        PER: tl.constexpr = 8 // WIDTH
        byte = tl.load(ptr + (k // PER) * run + j, mask=j < run, other=0).to(tl.int32)
        return ((byte >> ((k % PER) * WIDTH)) & ((1 << WIDTH) - 1)).to(COMPUTE)


@triton.jit
def _move(
    one_ptr, two_ptr, out_ptr, violations_ptr, size, run, tiles, steps,
    one_step, one_sample, two_step, two_sample, out_step, out_sample,
    ONE: tl.constexpr, TWO: tl.constexpr, OUT: tl.constexpr, CHECK: tl.constexpr, KIND: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // tiles).to(tl.int64)
    sample, t = row // steps, row % steps
    j = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    one_ptr += sample * one_sample + t * one_step
    two_ptr += sample * two_sample + t * two_step
    out_ptr += sample * out_sample + t * out_step
    wrong = tl.zeros([BLOCK], dtype=tl.int32)
    byte = tl.zeros([BLOCK], dtype=tl.int32)
    PER: tl.constexpr = 8 // OUT if OUT > 0 else 8
    for k in tl.static_range(8):
        value = _read(one_ptr, j, k, size, run, ONE, COMPUTE)
        if TWO >= 0:
            value = rounded(value + _read(two_ptr, j, k, size, run, TWO, COMPUTE), KIND, COMPUTE)
        place = j + k * run
        if OUT == 0:
            tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=(j < run) & (place < size))
        else:
            fits = (value >= 0) & (value < (1 << OUT))
            code = tl.where(fits, value, 0).to(tl.int32)
            fits = fits & (code.to(COMPUTE) == value)
            inside = (j < run) & (place < size)
            byte = byte | (tl.where(fits & inside, code, 0) << ((k % PER) * OUT))
            wrong += tl.where(fits | (place >= size) | (j >= run), 0, 1)
            if k % PER == PER - 1:
                tl.store(out_ptr + (k // PER) * run + j, byte.to(tl.uint8), mask=j < run)
                byte = tl.zeros([BLOCK], dtype=tl.int32)
    if CHECK:
        found = tl.sum(wrong, axis=0)
        if found > 0:
            tl.atomic_add(violations_ptr, found.to(violations_ptr.dtype.element_ty))
