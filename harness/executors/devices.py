"""Which devices cells may use: slots, and the environment that confines a process to its slot.

The parent never initialises CUDA: devices are counted in a child.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.executors.job import Job
from harness.executors.server import THREAD_VARIABLES, ForkServer
from harness.spec import CellSpec

Kind = Literal["cpu", "cuda"]
MASK = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """Room for one cell, or for one of the processes of a cell of several devices.

    Args:
        kind: what sort of cell fits.
        index: position among the parent's CUDA devices; None on a CPU.
        token: index, UUID or MIG name of the device, as ``CUDA_VISIBLE_DEVICES`` takes it.
    """

    kind: Kind
    index: int | None = None
    token: str = ""


def joined(slots: Sequence[Slot]) -> Slot:
    """Several slots as one, for a cell of several devices; it sees them in this order."""
    first, *others = slots
    return replace(first, token=",".join(slot.token for slot in slots)) if others else first


def kind_of(spec: CellSpec) -> Kind:
    """The slot that a cell needs: a predicted cell computes nothing, so it needs no GPU."""
    return "cuda" if spec.device == "cuda" and not spec.predicted else "cpu"


def cuda_tokens(server: ForkServer) -> tuple[str, ...]:
    """The CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; none without CUDA."""
    return tokens(os.environ.get(MASK), server.call("harness.executors.devices:count_cuda"))


def count_cuda() -> int:
    """CUDA devices that torch sees in this process. Only for children: it may initialise the driver."""
    import torch

    return torch.cuda.device_count()


def tokens(mask: str | None, count: int) -> tuple[str, ...]:
    """One name a device.

    Args:
        mask: the parent's ``CUDA_VISIBLE_DEVICES``: indices, (abbreviated) ``GPU-`` UUIDs or ``MIG-`` names.
        count: devices that CUDA sees under that mask.
    """
    if mask is None:
        return tuple(str(index) for index in range(count))
    names = tuple(name.strip() for name in mask.split(",") if name.strip())
    if names and all(name.startswith("MIG-") for name in names):
        return names if count else ()  # CUDA shows a process one MIG instance, however many the mask names
    return names[:count]  # CUDA ignores everything from the first invalid name on


def environment(job: Job, slot: Slot) -> dict[str, str]:
    """The complete environment of a cell's process: this process's, its threads and its device."""
    result: Mapping[str, str] = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(job.threads))}
    if job.spec.predicted:
        return dict(result)  # names the kernel path that a device would take, and computes nothing on it
    return {**result, MASK: slot.token}


def cuda_present() -> bool:
    """Whether NVML sees a GPU that this process may use; asks no CUDA, so the process stays free of it."""
    if os.environ.get(MASK) in ("", "-1"):
        return False
    from harness.devices.border import Nvml
    from harness.devices.device import DeviceError

    try:
        library = Nvml()
        try:
            return bool(library.call("nvmlDeviceGetCount") > 0)
        finally:
            library.close()
    except DeviceError:  # no driver
        return False
