"""Lossless storage of small non-negative integers in 1, 2, 4 or 8 bits each.

An element ``c < 2**w`` takes ``w`` bits. The tensor, in the order it lies in memory, is cut into eight runs of ``m =
ceil(n / 8)`` elements; ``8 / w`` neighbouring runs share a byte row::

    payload[r, j] = sum_k  c[(r * 8/w + k) * m + j] << (k * w)         r < w,  k < 8/w,  j < m

so that every operation works on contiguous memory. The payload has ``w * m`` bytes.

Every pack verifies itself: what the codes give back is compared with the input on its device, and the number of
elements that differ is added to a counter there. Fractions, negative values, NaN and values above the width all differ,
whatever their conversion to ``uint8`` did. The only thing that is lost unnoticed is the sign of a negative zero.

Memory while packing: one byte an element for the codes, and the comparison of an eighth of them at a time. On a CUDA
device with Triton floating tensors go through one kernel instead (:mod:`methods.kernels.pack_triton`): the same payload
and count, nothing beside the payload, and what does not fit has the code 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from methods.kernels.choice import FLOATS, triton_at

RAW = 0
"""The width that keeps a tensor as it is."""
WIDTHS = (1, 2, 4, 8)
"""Bits per element that divide a byte."""
COMPARE = 1 << 20
"""Elements that are compared at once even where an eighth is less: smaller blocks only cost launches (our choice)."""


class Kept(Protocol):
    """A tensor as a segment keeps it."""

    def restore(self) -> Tensor:
        """The tensor, detached, with its dtype and memory layout."""

    def owned(self) -> Kept:
        """The same, where :meth:`restore` gives memory that belongs to nobody else."""


@dataclass(frozen=True)
class Packed:
    """A tensor as it is kept.

    Args:
        width: bits per element, or :data:`RAW`.
        shape: of the tensor.
        stride: of the tensor that :func:`unpack` makes, in elements.
        dtype: of the tensor.
        payload: ``uint8`` codes; for :data:`RAW` the tensor itself, detached.
        version: of a raw payload, so that a later change in place is noticed.
    """

    width: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    payload: Tensor
    version: int = 0

    def restore(self) -> Tensor:
        """See :func:`unpack`."""
        return unpack(self)

    def owned(self) -> Packed:
        """A copy of a raw tensor; codes are nobody else's anyway."""
        if self.width != RAW:
            return self
        payload = unpack(self).clone()
        return replace(self, stride=payload.stride(), payload=payload, version=payload._version)


def width_for(top: float) -> int:
    """The narrowest width that holds the integers up to ``top``; :data:`RAW` above 255."""
    return next((width for width in WIDTHS if top < 1 << width), RAW)


def pack(x: Tensor, width: int, violations: Tensor | None = None) -> Packed:
    """Keep ``x`` at ``width`` bits per element.

    Args:
        x: any shape, memory layout and real dtype.
        width: one of :data:`WIDTHS`, or :data:`RAW`.
        violations: integer scalar on ``x``'s device, raised by the number of elements that the width cannot hold; None
            skips the check.

    Raises:
        ValueError: no such width.
    """
    x = x.detach()
    if width == RAW:
        return Packed(RAW, x.shape, x.stride(), x.dtype, x, x._version)
    if width not in WIDTHS:
        raise ValueError(f"cannot pack to {width} bits; allowed: {WIDTHS}, or {RAW} to keep the tensor as it is")
    if not _is_dense(x):
        x = x.contiguous()
    count = x.numel()
    run = -(-count // 8)
    flat = x.as_strided((count,), (1,))
    if x.dtype in FLOATS and triton_at(x.device):
        from methods.kernels import pack_triton

        return Packed(width, x.shape, x.stride(), x.dtype, pack_triton.pack(flat, width, violations))
    codes = x.new_empty(8 * run, dtype=torch.uint8)
    codes[:count].copy_(flat)
    codes[count:].zero_()
    if width < 8:
        codes.bitwise_and_((1 << width) - 1)
    if violations is not None:
        # In blocks, because a CPU promotes the codes to the input's dtype to compare them.
        block = max(run, COMPARE)
        for ours, theirs in zip(codes[:count].split(block), flat.split(block), strict=True):
            violations.add_(torch.count_nonzero(ours != theirs))
    if width < 8:
        codes = codes.view(width, 8 // width, run).bitwise_left_shift_(_shifts(width, x.device))
        codes = codes.sum(1, dtype=torch.uint8)  # the bits are disjoint, so the sum is their union
    return Packed(width, x.shape, x.stride(), x.dtype, codes.view(-1))


def unpack(packed: Packed) -> Tensor:
    """The tensor that was packed, detached, with its dtype and memory layout.

    Raises:
        RuntimeError: the tensor was kept raw and has been changed in place since.
    """
    if packed.width == RAW:
        if packed.payload._version != packed.version:
            raise RuntimeError("the kept input of a checkpointed stage was modified in place after it had been kept")
        return packed.payload.detach()
    width, codes = packed.width, packed.payload
    if packed.dtype in FLOATS and triton_at(codes.device):
        from methods.kernels import pack_triton

        flat = pack_triton.unpack(codes, width, packed.shape.numel(), packed.dtype)
        return flat.as_strided(packed.shape, packed.stride)
    if width < 8:
        codes = codes.view(width, 1, -1).bitwise_right_shift(_shifts(width, codes.device))
        codes = codes.bitwise_and_((1 << width) - 1).view(-1)
    return codes[: packed.shape.numel()].to(packed.dtype, copy=True).as_strided(packed.shape, packed.stride)


def narrowest(x: Tensor) -> int:
    """The narrowest width that holds ``x``, found by reading its values (waits for the device)."""
    violations = torch.zeros((), dtype=torch.int64, device=x.device)
    codes = pack(x, WIDTHS[-1], violations).payload
    if int(violations):
        return RAW
    return width_for(int(codes.max())) if codes.numel() else WIDTHS[0]


def _shifts(width: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8, device=device).view(1, -1, 1)


def _is_dense(x: Tensor) -> bool:
    """True if ``x`` covers its memory without gaps or overlap; ``empty_like`` then keeps its strides."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()
