"""Values between layers, kept sample by sample so that any chunk of the batch can be read back alone.

A value ``[T, N, ...]`` of small non-negative integers is kept at ``w`` bits an element (:mod:`methods.packing`'s code,
applied to every step of every sample by itself): sample ``i`` is row ``i`` of the payload, ``[N, T w ceil(n / 8)]``
bytes with ``n`` elements a step. Everything else is kept as it is.

On a CUDA device with Triton one kernel reads and writes rows, without scratch (:mod:`methods.kernels.rows_triton`); a
neuron's spikes go from the kernel that computes them straight into their rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.kernels.choice import FLOATS, triton_at
from methods.kernels.lif_stream import steps, valueless
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
        row = shape[0] * width * run_length(shape)
        return cls(width, shape, dtype, torch.empty((shape[1], row), dtype=torch.uint8, device=device))

    @property
    def is_raw(self) -> bool:
        """True if nothing is packed."""
        return self.width == RAW

    @property
    def by_kernel(self) -> bool:
        """True if one kernel packs and unpacks this value."""
        return not self.is_raw and self.dtype in FLOATS and triton_at(self.payload.device)

    def codes(self, count: int) -> tuple[Tensor, Tensor]:
        """Scratch for ``count`` samples: the bytes ``[count T, 8 m]``, and a view of them as ``[T, count, ...]``."""
        steps_, size = self.shape[0], math.prod(self.shape[2:])
        flat = torch.empty((count * steps_, 8 * run_length(self.shape)), dtype=torch.uint8, device=self.payload.device)
        if flat.shape[1] > size:
            flat[:, size:].zero_()
        view = flat[:, :size].unflatten(0, (count, steps_)).unflatten(2, self.shape[2:]).transpose(0, 1)
        return flat, view

    def put(self, a: int, b: int, flat: Tensor) -> None:
        """Pack codes into rows ``a:b``; the codes are used up."""
        self.payload[a:b].view(flat.shape[0], -1).copy_(pack_rows(flat, self.width))

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
        if self.by_kernel:
            from methods.kernels import rows_triton

            rows_triton.pack(x, self.payload[a:b], self.width, violations)
            return
        flat, view = self.codes(b - a)
        view.copy_(x)
        if self.width < 8:
            flat.bitwise_and_((1 << self.width) - 1)
        if violations is not None:
            for t in steps(x):
                violations.add_(torch.count_nonzero(view[t] != x[t]))
        self.put(a, b, flat)

    def add(self, one: Rows, two: Rows, violations: Tensor) -> None:
        """Fill all samples with the sum of two values.

        Args:
            one: of the same shape.
            two: likewise.
            violations: as in :meth:`write`.
        """
        if triton_at(self.payload.device) and {self.dtype, one.dtype, two.dtype} <= set(FLOATS):
            from methods.kernels import rows_triton

            first, second, out = ((rows.payload, rows.width) for rows in (one, two, self))
            rows_triton.add(first, second, out, self.shape, self.dtype, violations)
            return
        for a in range(min(self.shape[1], 2) if valueless(self.payload) else self.shape[1]):
            self.write(a, a + 1, one.read(a, a + 1) + two.read(a, a + 1), violations)

    def read(self, a: int, b: int) -> Tensor:
        """Samples ``a:b`` as ``[T, b - a, ...]``, contiguous; of a raw value possibly the kept tensor itself."""
        if self.is_raw:
            return self.payload[:, a:b].contiguous()
        out = torch.empty((self.shape[0], b - a, *self.shape[2:]), dtype=self.dtype, device=self.payload.device)
        if self.by_kernel:
            from methods.kernels import rows_triton

            rows_triton.unpack(self.payload[a:b], out, self.width)
            return out
        payload = self.payload[a:b].view((b - a) * self.shape[0], -1)
        flat = unpack_rows(payload, self.width)[:, : math.prod(self.shape[2:])]
        out.copy_(flat.unflatten(0, (b - a, self.shape[0])).unflatten(2, self.shape[2:]).transpose(0, 1))
        return out


def run_length(shape: Shape) -> int:
    """Bytes of a sample's step at one bit: ``ceil(n / 8)`` for ``n`` elements."""
    return -(-math.prod(shape[2:]) // 8)


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
