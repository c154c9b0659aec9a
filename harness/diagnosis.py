"""What works on this machine, and what each missing thing means for the measurements."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from harness.devices.border import Library

DATA_VARIABLE = "SNNBENCH_DATA"
DEFAULT_DATA_ROOT = Path("~/.cache/snnbench")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        state: ``ok``; ``missing``: something is not measured; ``broken``: runs will fail.
        detail: what was found.
        meaning: what follows where it is not ``ok``.
    """

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    meaning: str = ""


def examine(store: Path) -> Iterator[Finding]:
    """Look at everything that measurements depend on.

    Args:
        store: the folder that records would go to.
    """
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    checks: list[Callable[[], Finding]] = [
        _torch, _triton, _data_root, lambda: _store(store), _fork_server, _peak_reset, _oom_counter,
    ]  # fmt: skip
    for check in checks:
        yield check()
    yield from _devices()
    yield from _plugins()


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding("torch", "broken", f"{type(error).__name__}: {error}", "nothing can be measured")
    if torch.version.cuda is None:
        detail = f"{torch.__version__}, built without CUDA"
        return Finding("torch", "ok", detail, "GPU profiles are unavailable; predicted cells still work")
    detail = f"{torch.__version__}, built for CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        reasons = f"driver missing or too old for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides it"
        meaning = f"GPU profiles are unavailable ({reasons}); predicted cells still work"
        return Finding("torch", "ok", f"{detail}; sees no CUDA device", meaning)
    return Finding("torch", "ok", detail)


def _devices() -> Iterator[Finding]:
    """The GPUs, and what NVML tells of each: every probe that records of a GPU would lack, with what follows."""
    from harness.devices.border import Nvml
    from harness.devices.device import DeviceError

    meaning = "no GPU cells, no energy, no GPU memory of the process; everything on the CPU works"
    try:
        library = Nvml()
        count, driver = library.call("nvmlDeviceGetCount"), library.call("nvmlSystemGetDriverVersion")
        handles = [library.call("nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        names = [str(library.call("nvmlDeviceGetName", handle)) for handle in handles]
    except DeviceError as error:
        yield Finding("CUDA devices (NVML)", "missing", error.reason, meaning)
        return
    yield Finding("CUDA devices (NVML)", "ok", f"{', '.join(names) or 'none'}; driver {driver}")
    for index, handle in enumerate(handles):
        yield from examine_device(library, handle, f"GPU {index}")


def examine_device(library: Library, handle: Any, title: str) -> Iterator[Finding]:
    """What one device does not tell.

    Args:
        library: NVML, or a replay of it.
        handle: NVML's.
        title: how to call it.
    """
    from harness.devices import DeviceError, NvmlDevice, disturbances

    try:
        device = NvmlDevice(library, handle, context=False)
    except DeviceError as error:
        yield Finding(title, "missing", error.reason, "its cells cannot be measured")
        return
    state = device.state()
    try:
        yield Finding(f"{title}: energy", "ok", f"counter at {device.energy_j():.0f} J")
    except DeviceError as error:
        yield Finding(f"{title}: energy", "missing", error.reason, "energy_per_step_j is null")
    for name, reason in state.reasons.items():
        yield Finding(f"{title}: {name}", "missing", reason, "null in records of this device")
    for found in disturbances(state, state, 1.0):
        yield Finding(title, "missing", found, "times are marked as disturbed; --strict refuses")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "missing", "not installed", "Triton kernels are replaced by their torch fallback")
    return Finding("triton", "ok", "installed")


def _data_root() -> Finding:
    root = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA_ROOT).expanduser()
    if _writable(root):
        return Finding("data", "ok", f"{root}{'' if root.is_dir() else ' (made when first needed)'}")
    return Finding("data", "broken", f"{root} cannot be written", f"point ${DATA_VARIABLE} to a folder of yours")


def _store(store: Path) -> Finding:
    if _writable(store):
        return Finding("store", "ok", f"{store}{'' if store.is_dir() else ' (made by the first run)'}")
    return Finding("store", "broken", f"{store} cannot be written", "give a folder of yours with --store")


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself in its nearest existing parent."""
    existing = next((path for path in [folder, *folder.absolute().parents] if path.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError:
        return False


def _fork_server() -> Finding:
    from harness.executors.server import ForkServer, ServerError

    server, begin = ForkServer(), time.monotonic()
    try:
        state = server.state()
    except ServerError as error:
        return Finding("fork server", "broken", str(error), "cells cannot be started")
    detail = f"started in {time.monotonic() - begin:.1f} s, {state.threads} thread"
    if server.warnings:
        return Finding("fork server", "missing", "; ".join(server.warnings), "every cell imports torch for itself")
    return Finding("fork server", "ok", detail)


def _peak_reset() -> Finding:
    from harness.host import HostPeak

    with HostPeak() as peak:
        block = bytearray(32 << 20)
    if peak.bytes is None or peak.bytes < len(block) // 2:
        reason = peak.reason or f"a block of {len(block)} bytes raised the peak by {peak.bytes}"
        return Finding("reset of VmHWM", "missing", reason, "host_peak_bytes is null in every record")
    return Finding("reset of VmHWM", "ok", "the host's memory peak of a step is exact")


def _oom_counter() -> Finding:
    from harness.executors.cgroup import find

    file = find(Path("/proc"), Path("/sys/fs/cgroup"))
    if file is None:
        meaning = "a cell that the kernel's OOM killer ends is shown as killed, not as oom"
        return Finding("OOM killer's counter", "missing", "no cgroup file and no /proc/vmstat", meaning)
    return Finding("OOM killer's counter", "ok", str(file))


def _plugins() -> Iterator[Finding]:
    from harness import registry

    for kind in registry.GROUPS:
        entries = registry.entries(kind).values()
        usable = sum(entry.unavailable is None for entry in entries)
        yield Finding(kind, "ok" if usable else "broken", f"{usable} usable", "" if usable else "nothing can be run")
        for entry in entries:
            if entry.unavailable is not None:
                meaning = "its cells are recorded as unavailable"
                yield Finding(f"{kind}: {entry.name}", "missing", entry.unavailable, meaning)
