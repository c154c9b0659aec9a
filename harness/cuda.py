"""CUDA's caching allocator and NVML, each under its own name; null with a reason where there is none."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.devices import DeviceError, open_device
from harness.devices.finding import NO_CUDA

NAMES = ("cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes")
SNAPSHOT_EVENTS = 200_000
"""Most allocations and frees that a snapshot's history keeps (our choice: a step of a deep network has some 10^4)."""
NEURONS = {"LIF": "lif", "IF": "if_", "PLIF": "plif"}
"""SpikingJelly's packages of neuron kernels."""


@dataclass
class CudaPeaks:
    """Peaks of a region, in bytes.

    ``requested`` is what callers asked for, before the allocator's rounding; ``process`` and ``device`` are NVML's at the
    end of the region, ``device_delta`` is the device's rise since before this process had a CUDA context.
    """

    allocated: int | None = None
    reserved: int | None = None
    requested: int | None = None
    process: int | None = None
    device: int | None = None
    device_delta: int | None = None
    workspace: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def peaks(device: str) -> Iterator[CudaPeaks]:
    """Peaks of the CUDA allocator over a region: collected, emptied and synchronised before."""
    found = CudaPeaks()
    if device != "cuda":
        found.reasons = dict.fromkeys(NAMES, NO_CUDA)
        yield found
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    _reset()
    yield found
    torch.cuda.synchronize()
    seen = _read()
    found.allocated, found.reserved = seen["allocated_bytes"], seen["reserved_bytes"]
    found.requested = seen["requested_bytes"]
    found.process, reason = process_bytes()
    found.device, why = _device_used()
    found.workspace = workspace_bytes()
    if reason is not None:
        found.reasons["nvml_process_bytes"] = reason
    if found.device is not None and _BEFORE[0] is not None:
        found.device_delta = found.device - _BEFORE[0]
    else:
        found.reasons["nvml_device_delta_bytes"] = (why or "NVML does not say") if found.device is None else _BEFORE[1]


@contextlib.contextmanager
def phase_peaks(device: str) -> Iterator[dict[str, int]]:
    """Peaks over a whole phase, also where :func:`peaks` starts anew inside it; filled at the end, empty on a CPU."""
    found: dict[str, int] = {}
    if device != "cuda" or not torch.cuda.is_initialized():
        yield found
        return
    torch.cuda.reset_peak_memory_stats()
    _HIGHEST.clear()
    try:
        yield found
    finally:
        _remember()
        found.update(_HIGHEST)


def before_context() -> None:
    """Note what the device holds before this process has a CUDA context, for :attr:`CudaPeaks.device_delta`.

    Where NVML hides processes from a container, the rise since then stands beside the missing number: it includes what
    others took or gave back meanwhile.
    """
    if not torch.cuda.is_initialized():
        _BEFORE[:] = _device_used()


def _device_used() -> tuple[int | None, str]:
    state = open_device("cuda").state()
    return state.memory_used_bytes, state.reasons.get("memory_used_bytes", "")


def process_bytes() -> tuple[int | None, str | None]:
    """What NVML says this process holds on its current device, or None and the reason."""
    try:
        return open_device("cuda").own_bytes(), None
    except DeviceError as error:
        return None, error.reason


def workspace_bytes() -> int | None:
    """Bytes of cuBLAS's workspaces, which come from the allocator; they are freed by this and made again when needed.

    None where this torch cannot free them.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is None:
        return None
    before = torch.cuda.memory_allocated()
    clear()
    return max(0, before - torch.cuda.memory_allocated())


@contextlib.contextmanager
def snapshot(file: Path | None) -> Iterator[None]:
    """Record the allocator's history over a region into ``file``, for https://pytorch.org/memory_viz; None: do nothing.

    Works on CUDA only.
    """
    if file is None:
        yield
        return
    # Python frames only: symbols of C++ frames take minutes to find and most of the file.
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=SNAPSHOT_EVENTS)
    try:
        yield
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def kernel_path(device: str) -> str:
    """Which neuron kernels SpikingJelly runs on this device; they save different tensors, so memory depends on them."""
    import spikingjelly

    version = getattr(spikingjelly, "__version__", "2")
    if device == "cpu":
        return f"spikingjelly {version}: torch kernels on the CPU"
    chosen = {name: found for name, package in NEURONS.items() if (found := _selected(package))}
    if not chosen:
        return f"spikingjelly {version}: automatic CUDA kernels"
    return f"spikingjelly {version}: " + ", ".join(f"{name} {kernel}" for name, kernel in chosen.items())


def _selected(package: str) -> str | None:
    """What a package of SpikingJelly's has chosen on the current device (``_ops/selection.py``); None: nothing yet."""
    selection = getattr(sys.modules.get(f"spikingjelly._ops.{package}"), "_selection", None)
    if selection is None or not torch.cuda.is_initialized():
        return None
    chosen = getattr(selection, "_selections", {}).get(torch.cuda.current_device())
    return getattr(chosen, "name", None)


_BEFORE: list[Any] = [None, "nobody asked NVML before this process had a CUDA context"]
"""Bytes that the device held before this process came, or None and the reason."""
_HIGHEST: dict[str, int] = {}
"""Peaks of the running phase up to the last reset."""


def _read() -> dict[str, int]:
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "requested_bytes": torch.cuda.memory_stats().get("requested_bytes.all.peak", 0),
    }


def _remember() -> None:
    for name, value in _read().items():
        _HIGHEST[name] = max(value, _HIGHEST.get(name, 0))


def _reset() -> None:
    _remember()
    torch.cuda.reset_peak_memory_stats()


class StepClock:
    """Times steps: ``perf_counter`` on a CPU; on CUDA one event pair a step, read after one synchronise at the end."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.name = "cuda_event" if device == "cuda" else "perf_counter"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: list[float] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One timed step."""
        if self.device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - begin)

    def samples(self) -> list[float]:
        """Seconds of every step so far."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += [start.elapsed_time(end) / 1e3 for start, end in self._events]
            self._events.clear()
        return self._seconds
