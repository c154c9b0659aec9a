"""What machine this is: processor, memory and its limits, GPUs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from harness.devices.border import Library, Nvml
from harness.devices.device import DeviceError
from harness.provenance.facts import NotAvailableError, read

PROC, SYS = Path("/proc"), Path("/sys")
MASK = "CUDA_VISIBLE_DEVICES"
NO_LIMIT_V1 = 1 << 60
"""cgroup v1 writes "no limit" as the largest multiple of the page size in 63 bits; nobody has an exabyte."""


def host_hash() -> str:
    """Twelve hex digits that tell hosts apart without naming them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def cpu_model(proc: Path = PROC) -> str:
    """The processor's name.

    Raises:
        NotAvailableError: the system does not tell.
    """
    match = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", read(proc / "cpuinfo"), re.MULTILINE)
    if match is not None:
        return match[1].strip()
    if platform.processor():
        return platform.processor()
    raise NotAvailableError(f"{proc / 'cpuinfo'} names no model")


def usable_cores() -> int:
    """Cores that this process may run on.

    Raises:
        NotAvailableError: the system has no affinity.
    """
    if sys.platform != "linux":
        raise NotAvailableError("no processor affinity on this system")
    return len(os.sched_getaffinity(0))


def governor(sys_root: Path = SYS) -> str:
    """The first core's frequency governor.

    Raises:
        NotAvailableError: no frequency scaling here (a virtual machine).
    """
    return read(sys_root / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def total_memory(proc: Path = PROC) -> int:
    """The machine's memory in bytes.

    Raises:
        NotAvailableError: the system does not tell.
    """
    match = re.search(r"^MemTotal:\s+(\d+) kB", read(proc / "meminfo"), re.MULTILINE)
    if match is None:
        raise NotAvailableError(f"{proc / 'meminfo'} has no MemTotal")
    return int(match[1]) * 1024


def cgroup_limit(proc: Path = PROC, sys_root: Path = SYS) -> int:
    """The tightest memory limit of this process's cgroup and its ancestors, in bytes.

    Source: kernel documentation, admin-guide/cgroup-v2.rst (memory.max) and cgroup-v1/memory.rst.

    Raises:
        NotAvailableError: no cgroup, or none that limits memory.
    """
    limits = [limit for file in _limit_files(proc, sys_root / "fs/cgroup") if (limit := _limit(file)) is not None]
    if not limits:
        raise NotAvailableError("no cgroup limits memory")
    return min(limits)


def _limit_files(proc: Path, root: Path) -> list[Path]:
    files = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    for line in read(proc / "self/cgroup").splitlines():
        _, controllers, inner = line.split(":", 2)
        base, name = (root, "memory.max") if controllers == "" else (root / "memory", "memory.limit_in_bytes")
        if controllers == "" or "memory" in controllers.split(","):
            folder = Path(inner.lstrip("/"))
            files += [base / part / name for part in (folder, *folder.parents)]
    return files


def _limit(file: Path) -> int | None:
    try:
        text = read(file)
    except NotAvailableError:
        return None  # the host's path inside a container, or a level without the memory controller
    if not text.isdigit() or int(text) >= NO_LIMIT_V1:
        return None
    return int(text)


def gpus(visible: list[str] | None) -> dict[str, Any]:
    """Driver and GPUs, asked from NVML: CUDA is not initialised.

    Args:
        visible: indices or (abbreviated) UUIDs of the devices to tell about; None for all.

    Returns:
        ``devices`` (name, uuid, memory_bytes), ``driver`` and ``cuda``, the newest CUDA that the driver supports.

    Raises:
        NotAvailableError: no NVML, no driver, or no such device.
    """
    try:
        library = Nvml()
        try:
            return _gpus(library, visible)
        finally:
            library.close()
    except DeviceError as error:
        raise NotAvailableError(error.reason) from None


def visible_gpus() -> list[str] | None:
    """The devices that ``CUDA_VISIBLE_DEVICES`` leaves, or None for all.

    Raises:
        NotAvailableError: it leaves none.
    """
    mask = os.environ.get(MASK)
    if mask is None:
        return None
    names = [name.strip() for name in mask.split(",") if name.strip()]
    if not names or names[0] in ("-1", "NoDevFiles"):
        raise NotAvailableError(f"{MASK} hides all devices from this process")
    return names


def choose(devices: list[dict[str, Any]], visible: list[str] | None) -> list[dict[str, Any]]:
    """Those of the ``devices``, as NVML numbers them, that ``visible`` names by index or start of UUID; None for all.

    Raises:
        NotAvailableError: none of the names fits.
    """
    if visible is None:
        return devices
    known = {str(index): device for index, device in enumerate(devices)}
    known |= {name: device for name in visible for device in devices if device["uuid"].startswith(name)}
    found = [known[name] for name in visible if name in known]
    if not found:
        raise NotAvailableError(f"NVML lists no device {', '.join(visible)} (a MIG instance has a name of its own)")
    return found


def _gpus(nvml: Library, visible: list[str] | None) -> dict[str, Any]:
    handles = [nvml.call("nvmlDeviceGetHandleByIndex", index) for index in range(nvml.call("nvmlDeviceGetCount"))]
    cuda = nvml.call("nvmlSystemGetCudaDriverVersion")
    return {
        "devices": choose([_device(nvml, handle) for handle in handles], visible),
        "driver": nvml.call("nvmlSystemGetDriverVersion"),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
    }


def _device(nvml: Library, handle: Any) -> dict[str, Any]:
    return {
        "name": nvml.call("nvmlDeviceGetName", handle),
        "uuid": nvml.call("nvmlDeviceGetUUID", handle),
        "memory_bytes": int(nvml.call("nvmlDeviceGetMemoryInfo", handle).total),
    }
