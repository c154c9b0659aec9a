"""CUDA's caching allocator and NVML, each under its own name; null with a reason where there is none."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

NO_CUDA = "no CUDA device in this cell"


@dataclass
class CudaPeaks:
    """Peaks of a region, in bytes. ``requested`` is what callers asked for, before the allocator's rounding."""

    allocated: int | None = None
    reserved: int | None = None
    requested: int | None = None
    process: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def peaks(device: str) -> Iterator[CudaPeaks]:
    """Peaks of the CUDA allocator over a region: collected, emptied and synchronised before."""
    found = CudaPeaks()
    names = ("cuda_allocated_bytes", "cuda_reserved_bytes", "cuda_requested_bytes", "nvml_process_bytes")
    if device != "cuda":
        found.reasons = dict.fromkeys(names, NO_CUDA)
        yield found
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    yield found
    torch.cuda.synchronize()
    found.allocated = torch.cuda.max_memory_allocated()
    found.reserved = torch.cuda.max_memory_reserved()
    found.requested = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    found.process, reason = process_bytes()
    if reason is not None:
        found.reasons["nvml_process_bytes"] = reason


def process_bytes() -> tuple[int | None, str | None]:
    """What NVML says this process holds on its current device, or None and the reason."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                if process.usedGpuMemory is None:
                    return None, "NVML does not tell a process's memory here"
                return int(process.usedGpuMemory), None
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    return None, "NVML does not list this process (its own process-id namespace)"


def kernel_path(device: str) -> str:
    """Which neuron kernels SpikingJelly runs on this device; they save different tensors, so memory depends on them."""
    import spikingjelly

    version = getattr(spikingjelly, "__version__", "2")
    if device == "cpu":
        return f"spikingjelly {version}: torch kernels on the CPU"
    return f"spikingjelly {version}: automatic CUDA kernels"


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
