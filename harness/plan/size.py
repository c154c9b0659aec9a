"""Sizes as people write them: ``24GiB``, ``3,224,224``; and the part of a budget that is not for tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from harness.errors import UsageError

UNITS = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

CONTEXT_BYTES = 512 * 2**20
"""CUDA context with its loaded kernels. A few hundred MiB, by driver, GPU and CUDA version; our rounding up of what
``nvidia-smi`` shows for a process that holds one tensor."""
WORKSPACE_BYTES = 256 * 2**20
"""Library workspaces: cuBLAS takes up to 32 MiB a handle and stream (``getChosenWorkspaceSize`` in ATen's
``CublasHandlePool.cpp``); the rest is for cuDNN, whose choice follows from each convolution (our allowance)."""
FRAGMENTED = 0.05
"""Part of the budget that the caching allocator reserves and does not fill (our allowance: its blocks from 1 MiB on are
rounded to 2 MiB and are cut up over a step)."""


@dataclass(frozen=True)
class Budget:
    """A device's memory, and what is kept back of it.

    Args:
        total_bytes: what the user has.
        reserve_bytes: for what the ledger cannot see: context, workspaces, fragmentation.
    """

    total_bytes: int
    reserve_bytes: int

    @property
    def available_bytes(self) -> int:
        """What is left for tensors."""
        return self.total_bytes - self.reserve_bytes

    @classmethod
    def of(cls, total: str | int, reserve: str | int | None = None) -> Budget:
        """A budget from text or bytes; the default reserve is :func:`default_reserve`.

        Raises:
            UsageError: a size cannot be read, or nothing is left beside the reserve.
        """
        total_bytes = parse_size(total, "--budget")
        kept = default_reserve(total_bytes) if reserve is None else parse_size(reserve, "--reserve", least=0)
        if kept >= total_bytes:
            raise UsageError(
                f"--budget {show_size(total_bytes)}: nothing is left beside the reserve of {show_size(kept)} for CUDA "
                f"context, workspaces and fragmentation; give a larger budget, or another --reserve (0 is allowed)"
            )
        return cls(total_bytes, kept)


def default_reserve(total_bytes: int) -> int:
    """Context, workspaces and fragmentation, in bytes."""
    return CONTEXT_BYTES + WORKSPACE_BYTES + math.ceil(FRAGMENTED * total_bytes)


def parse_size(text: str | int, where: str, least: int = 1) -> int:
    """Bytes of ``24GiB``, ``800 MB`` or ``1000000``.

    Args:
        text: what was given; a number is bytes.
        where: the option, for the error.
        least: smallest value allowed.

    Raises:
        UsageError: no size, or one below ``least``.

    >>> parse_size("1.5GiB", "--budget")
    1610612736
    """
    found = _SIZE.fullmatch(str(text))
    unit = (found.group(2) or "B") if found else ""
    if found is None or unit not in UNITS:
        raise UsageError(
            f"{where} {text!r}: not a size. Allowed: a number with one of {', '.join(UNITS)}, e.g. 24GiB; bytes without"
        )
    value = int(float(found.group(1)) * UNITS[unit])
    if value < least:
        raise UsageError(f"{where} {text!r}: has to be at least {least} byte{'s' if least != 1 else ''}")
    return value


def show_size(value: int) -> str:
    """Bytes for people, in binary units.

    >>> show_size(8_658_711_040)
    '8.06 GiB'
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if value >= UNITS[unit]:
            return f"{value / UNITS[unit]:.2f} {unit}"
    return f"{value} B"


def parse_shape(text: str, where: str, names: str) -> tuple[int, ...]:
    """Positive integers separated by commas.

    Args:
        text: e.g. ``3,224,224``.
        where: the option, for the error.
        names: what the numbers are, e.g. ``T,N,C,H,W``; the first ones up to ``N`` or ``C`` are required.

    Raises:
        UsageError: something else was given.
    """
    least = names.split(",").index("C") + 1
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) < least or min(found, default=0) < 1:
        raise UsageError(f"{where} {text!r}: allowed are whole numbers from 1 on, separated by commas: {names}")
    return found
