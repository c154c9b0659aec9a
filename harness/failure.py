"""From an exception to a phase's status: what went wrong, and how many bytes were asked for."""

from __future__ import annotations

import re
import traceback

import torch

from harness.contracts import Unavailable, Unsupported
from harness.record import PhaseResult
from harness.training import DivergedError

_CPU_OOM = re.compile(r"(?:can't allocate memory: you tried to allocate|tried to allocate) (\d+) bytes", re.IGNORECASE)
_CUDA_OOM = re.compile(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB|bytes)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def classify(error: Exception) -> PhaseResult:
    """The phase result of an exception."""
    if isinstance(error, Unsupported):
        return PhaseResult(status="unsupported", reason=str(error))
    if isinstance(error, Unavailable):
        return PhaseResult(status="unavailable", reason=str(error))
    if isinstance(error, DivergedError):
        return PhaseResult(status="diverged", reason=str(error))
    return PhaseResult(
        status="oom" if is_oom(error) else "error",
        reason=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        bytes_requested=requested(str(error)),
    )


def is_oom(error: Exception) -> bool:
    """True for CUDA's out-of-memory error, Python's, and the CPU allocator's RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _CPU_OOM.search(str(error)) is not None


def requested(text: str) -> int | None:
    """Bytes that an allocator's message says were asked for."""
    if (cpu := _CPU_OOM.search(text)) is not None:
        return int(cpu[1])
    cuda = _CUDA_OOM.search(text)
    return None if cuda is None else int(float(cuda[1]) * _UNITS[cuda[2]])
