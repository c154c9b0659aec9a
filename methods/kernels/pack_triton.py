"""Packing and unpacking as one Triton kernel each: the payload of :mod:`methods.packing`, bit for bit.

Packing reads every element once and writes ``w / 8`` bytes for it; there are no codes of one byte an element in
between, and what the width cannot hold is counted on the way. Unpacking is the reverse.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.triton_support import WIDE, blocks, on

BLOCK = 1024
"""Bytes of the payload's rows that one program makes (our choice: 4 warps, 8 elements a thread and row)."""


def pack(flat: Tensor, width: int, violations: Tensor | None) -> Tensor:
    """Codes of a dense tensor.

    Args:
        flat: ``[n]``, contiguous, of a floating dtype.
        width: 1, 2, 4 or 8 bits per element.
        violations: integer scalar on the same device, raised by the number of elements that are no integer in
            ``[0, 2**width)``; None: not counted.

    Returns:
        ``uint8 [width * ceil(n / 8)]``. Where an element does not fit, its code is 0.
    """
    count = flat.numel()
    run = -(-count // 8)
    payload = torch.empty(width * run, dtype=torch.uint8, device=flat.device)
    if count:
        counter = payload if violations is None else violations
        with on(flat.device):
            _pack[blocks(run, BLOCK)](
                flat, payload, counter, count, run,
                WIDTH=width, CHECK=violations is not None, COMPUTE=WIDE[flat.dtype], BLOCK=BLOCK,
            )  # fmt: skip
    return payload


def unpack(payload: Tensor, width: int, count: int, dtype: torch.dtype) -> Tensor:
    """The ``[count]`` elements of :func:`pack`'s payload, in a floating ``dtype``."""
    out = torch.empty(count, dtype=dtype, device=payload.device)
    run = -(-count // 8)
    if count:
        with on(payload.device):
            _unpack[blocks(run, BLOCK)](payload, out, count, run, WIDTH=width, BLOCK=BLOCK)
    return out


@triton.jit
def _pack(
    x_ptr, payload_ptr, violations_ptr, count, run,
    WIDTH: tl.constexpr, CHECK: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.zeros([BLOCK], dtype=tl.int64) + run  # 64 bits: eight runs may pass 2**31 elements
    PER: tl.constexpr = 8 // WIDTH
    wrong = tl.zeros([BLOCK], dtype=tl.int32)
    for row in tl.static_range(WIDTH):
        byte = tl.zeros([BLOCK], dtype=tl.int32)
        for k in tl.static_range(PER):
            place = j + (row * PER + k) * stride
            x = tl.load(x_ptr + place, mask=(j < run) & (place < count), other=0).to(COMPUTE)
            fits = (x >= 0) & (x < (1 << WIDTH))
            code = tl.where(fits, x, 0).to(tl.int32)
            fits = fits & (code.to(COMPUTE) == x)
            byte = byte | (tl.where(fits, code, 0) << (k * WIDTH))
            wrong += tl.where(fits, 0, 1)
        tl.store(payload_ptr + row * stride + j, byte.to(tl.uint8), mask=j < run)
    if CHECK:
        found = tl.sum(wrong, axis=0)
        if found > 0:
            tl.atomic_add(violations_ptr, found.to(violations_ptr.dtype.element_ty))


@triton.jit
def _unpack(payload_ptr, out_ptr, count, run, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stride = tl.zeros([BLOCK], dtype=tl.int64) + run
    PER: tl.constexpr = 8 // WIDTH
    for row in tl.static_range(WIDTH):
        byte = tl.load(payload_ptr + row * stride + j, mask=j < run, other=0).to(tl.int32)
        for k in tl.static_range(PER):
            place = j + (row * PER + k) * stride
            # By way of float32, which holds every code.
            value = ((byte >> (k * WIDTH)) & ((1 << WIDTH) - 1)).to(tl.float32)
            tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=(j < run) & (place < count))
