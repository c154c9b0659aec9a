"""How checkpointed inputs are kept: by width found for each of them, or by one of the paper's compressors for all.

========  ==================================  =====================================================
name      holds                               kept
========  ==================================  =====================================================
adaptive  integers up to 255                  1, 2, 4 or 8 bits an element, the fewest that hold it
bit       0 and 1                             1 bit an element
bool      0 and 1                             ``bool``, one byte an element
uint8     integers up to 255                  one byte an element
sparse    0 and 1                             the place of every 1, ``int32``
raw       anything                            the tensor
========  ==================================  =====================================================

Which inputs are compressed follows from rules (:mod:`methods.widths`): what cannot be small integers (the output of a
convolution, the network's own input), or is known to exceed what the compressor holds, is kept raw. All others are
compressed, and **every pack verifies itself**: what does not come back as it was is counted. The adaptive compressor
then takes more bits. Any other one was told what to do and refuses: see :mod:`methods.checkpoint_compress`.

``sparse`` waits for the device in every pack, because its size depends on the values. Where values cannot be read (fake
tensors), a replayed count is used, or the bound that every element is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from methods.packing import COMPARE, RAW, WIDTHS, Kept, narrowest, pack
from methods.widths import Bound, width_of

Name = Literal["adaptive", "bit", "bool", "uint8", "sparse", "raw"]
NAMES: tuple[str, ...] = get_args(Name)
FIXED: dict[str, tuple[int, int]] = {"bit": (1, 1), "bool": (1, 8), "uint8": (255, 8), "sparse": (1, 32)}
"""Largest integer that a compressor holds, and its bits an element (``sparse``: a spike)."""
ALLOWED = (RAW, *WIDTHS, FIXED["sparse"][1])


def width_under(name: str, bound: Bound) -> int | None:
    """Bits that an input with this bound is kept at; None where only its values can tell.

    Args:
        name: one of :data:`NAMES`.
        bound: largest integer in it; ``inf``: it does not hold small integers; None: unknown.
    """
    if name == "raw":
        return RAW
    if name == "adaptive":
        return width_of(bound)
    top, width = FIXED[name]
    return RAW if bound is not None and bound > top else width


class Keeper:
    """Keeps the inputs of all segments in one forward.

    Args:
        name: one of :data:`NAMES`.
        widths: bits an element of each input; None entries are measured, and filled in.
        device: of the inputs.
        spikes: for ``sparse``, how many ones each input has, where they cannot be counted.
    """

    def __init__(
        self, name: str, widths: list[int | None], device: torch.device, spikes: list[int | None] | None = None
    ) -> None:
        self.widths, self.measured = widths, dict[int, int]()
        self.violations = torch.zeros(len(widths), dtype=torch.int64, device=device)
        self.spikes: list[int | None] = [None] * len(widths) if spikes is None else list(spikes)
        self._name = name

    def __call__(self, index: int, x: Tensor) -> Kept:
        """Keep the input of segment ``index``."""
        width = self.widths[index]
        if width is None and not isinstance(x, FakeTensor):
            width = self.widths[index] = self.measured[index] = narrowest(x)
        width = RAW if width is None else width
        if width != RAW and self._name == "bool":
            return _Bools.of(x, self.violations[index])
        if width != RAW and self._name == "sparse":
            found = _Places.of(x, self.violations[index], self.spikes[index])
            self.spikes[index] = found.places.numel()
            return found
        return pack(x, width, self.violations[index])


@dataclass(frozen=True)
class _Bools:
    """One byte an element."""

    values: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, violations: Tensor) -> _Bools:
        values = x.detach().to(torch.bool)
        flat, theirs = values.reshape(-1), x.detach().reshape(-1)
        # In blocks, because a CPU promotes the values to the input's dtype to compare them.
        for a, b in zip(flat.split(COMPARE), theirs.split(COMPARE), strict=True):
            violations.add_(torch.count_nonzero(a != b))
        return cls(values, x.dtype)

    def restore(self) -> Tensor:
        return self.values.to(self.dtype)

    def owned(self) -> _Bools:
        return self


@dataclass(frozen=True)
class _Places:
    """The places of the ones in a flat tensor, four bytes each."""

    places: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, violations: Tensor, count: int | None) -> _Places:
        flat = x.detach().reshape(-1)
        if isinstance(x, FakeTensor):
            found = flat.new_empty((flat.numel() if count is None else count, 1), dtype=torch.int64)
        else:
            found = flat.nonzero()
        violations.add_(torch.count_nonzero(flat[found.view(-1)] != 1))
        kind = torch.int32 if flat.numel() < 1 << 31 else torch.int64
        return cls(found.view(-1).to(kind), x.shape, x.dtype)

    def restore(self) -> Tensor:
        flat = torch.zeros(self.shape.numel(), dtype=self.dtype, device=self.places.device)
        return flat.index_fill_(0, self.places.long(), 1).view(self.shape)

    def owned(self) -> _Places:
        return self
