"""Values between layers, kept sample by sample so that any chunk of the batch can be read back alone.

A value ``[T, N, ...]`` of small non-negative integers is kept at ``w`` bits an element (:mod:`methods.packing`'s code,
applied to every sample by itself): sample ``i`` is row ``i`` of the payload, ``[N, w ceil(n / 8)]`` bytes with ``n``
elements a sample. Everything else is kept as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels.lif_stream import steps
from methods.packing import RAW, WIDTHS

Shape = tuple[int, ...]


@dataclass
class Rows:
    """A value as it is kept.

    Args:
        width: bits an element, or :data:`~methods.packing.RAW`.
        shape: ``[T, N, ...]``.
        dtype: of the value.
        payload: ``uint8 [N, bytes]``; for a raw value the tensor itself, detached.
    """

    width: int
    shape: Shape
    dtype: torch.dtype
    payload: Tensor

    @classmethod
    def raw(cls, x: Tensor) -> Rows:
        """``x`` as it is."""
        return cls(RAW, tuple(x.shape), x.dtype, x.detach())

    @classmethod
    def empty(cls, width: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Rows:
        """Room for a value; :meth:`write` fills it."""
        if width == RAW:
            return cls(RAW, shape, dtype, torch.empty(shape, dtype=dtype, device=device))
        if width not in WIDTHS:
            raise ValueError(f"cannot pack to {width} bits; allowed: {WIDTHS}, or {RAW} to keep the value as it is")
        row = width * run_length(shape)
        return cls(width, shape, dtype, torch.empty((shape[1], row), dtype=torch.uint8, device=device))

    @property
    def is_raw(self) -> bool:
        """True if nothing is packed."""
        return self.width == RAW

    def codes(self, count: int) -> tuple[Tensor, Tensor]:
        """Scratch for ``count`` samples: the bytes ``[count, 8 m]``, and a view of them as ``[T, count, ...]``."""
        size = math.prod(self.shape) // self.shape[1]
        flat = torch.empty((count, 8 * run_length(self.shape)), dtype=torch.uint8, device=self.payload.device)
        if flat.shape[1] > size:
            flat[:, size:].zero_()
        view = flat[:, :size].view(count, self.shape[0], *self.shape[2:]).transpose(0, 1)
        return flat, view

    def put(self, a: int, b: int, flat: Tensor) -> None:
        """Pack codes into rows ``a:b``; the codes are used up."""
        self.payload[a:b] = pack_rows(flat, self.width)

    def write(self, a: int, b: int, x: Tensor, violations: Tensor | None = None) -> None:
        """Samples ``a:b`` from ``x [T, b - a, ...]``.

        Args:
            a: first sample.
            b: one past the last.
            x: their values.
            violations: raised by the number of elements that the width cannot hold; None skips the check.
        """
        if self.is_raw:
            self.payload[:, a:b] = x
            return
        flat, view = self.codes(b - a)
        view.copy_(x)
        if self.width < 8:
            flat.bitwise_and_((1 << self.width) - 1)
        if violations is not None:
            for t in steps(x):
                violations.add_(torch.count_nonzero(view[t] != x[t]))
        self.put(a, b, flat)

    def read(self, a: int, b: int) -> Tensor:
        """Samples ``a:b`` as ``[T, b - a, ...]``, contiguous; of a raw value possibly the kept tensor itself."""
        if self.is_raw:
            return self.payload[:, a:b].contiguous()
        size = math.prod(self.shape) // self.shape[1]
        flat = unpack_rows(self.payload[a:b], self.width)[:, :size]
        out = torch.empty((self.shape[0], b - a, *self.shape[2:]), dtype=self.dtype, device=self.payload.device)
        out.copy_(flat.view(b - a, self.shape[0], *self.shape[2:]).transpose(0, 1))
        return out


def run_length(shape: Shape) -> int:
    """Bytes of a row at one bit: ``ceil(n / 8)`` for ``n`` elements a sample."""
    return -(-(math.prod(shape) // shape[1]) // 8)


def pack_rows(codes: Tensor, width: int) -> Tensor:
    """``[n, 8 m]`` codes below ``2**width`` to ``[n, width m]`` bytes; the codes are used up."""
    if width == 8:
        return codes
    count, length = codes.shape[0], codes.shape[1] // 8
    runs = codes.view(count, width, 8 // width, length)
    out = runs[:, :, 0]
    for k in range(1, 8 // width):
        out.bitwise_or_(runs[:, :, k].bitwise_left_shift_(k * width))
    return out.reshape(count, width * length)


def unpack_rows(payload: Tensor, width: int) -> Tensor:
    """The inverse of :func:`pack_rows`."""
    if width == 8:
        return payload
    count, length = payload.shape[0], payload.shape[1] // width
    rows = payload.view(count, width, length)
    out = torch.empty((count, width, 8 // width, length), dtype=torch.uint8, device=payload.device)
    mask = (1 << width) - 1
    for k in range(8 // width):
        torch.bitwise_right_shift(rows, k * width, out=out[:, :, k]).bitwise_and_(mask)
    return out.view(count, 8 * length)
