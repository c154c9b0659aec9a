"""A device of NVML's.

Sources: NVIDIA's NVML API reference. The energy counter is in millijoules since the driver was loaded and moves about
every 100 ms; a MIG instance has its own memory and processes, everything else belongs to the whole GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from harness.devices.border import Library
from harness.devices.device import Device, DeviceError, Foreign, State

THROTTLE = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "too hot (driver)", 0x40: "too hot (hardware)",
    0x80: "power brake",
}  # fmt: skip
"""Bits of the clocks' event reasons that hold clocks down (``nvmlClocksEventReason*``). Left out: idle, and clocks that
somebody has set."""
POLICIES = {0: "power cap", 1: "too hot", 2: "sync boost", 3: "board limit", 5: "reliability"}
"""Policies whose violation times NVML adds up (``nvmlPerfPolicyType_t``). Left out: low utilisation."""
SM_CLOCK, MEMORY_CLOCK, TEMPERATURE_GPU = 1, 2, 0
"""``NVML_CLOCK_SM``, ``NVML_CLOCK_MEM``, ``NVML_TEMPERATURE_GPU``."""
OLD_DRIVER = 13
"""``NVML_ERROR_FUNCTION_NOT_FOUND``: the clocks' event reasons have had that name since driver 535."""


class NvmlDevice(Device):
    """A GPU or a MIG instance.

    Args:
        library: NVML, or a replay of it.
        handle: NVML's, of the GPU or the instance.
        pid: of this process.
        context: whether this process has a CUDA context there, so that one of the processes listed must be it.
    """

    def __init__(self, library: Library, handle: Any, pid: int | None = None, context: bool = True) -> None:
        self._library, self._handle = library, handle
        self._pid, self._context = os.getpid() if pid is None else pid, context
        self.uuid = str(library.call("nvmlDeviceGetUUID", handle))
        self.mig = self.uuid.startswith("MIG-")
        self._gpu = library.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if self.mig else handle
        self.name = str(library.call("nvmlDeviceGetName", self._gpu))

    def state(self) -> State:
        """The device now."""
        reasons: dict[str, str] = {}
        questions: dict[str, Callable[[], Any]] = {
            "memory_used_bytes": lambda: int(self._ask("nvmlDeviceGetMemoryInfo").used),
            "memory_total_bytes": lambda: int(self._ask("nvmlDeviceGetMemoryInfo").total),
            "power_w": lambda: self._gpu_ask("nvmlDeviceGetPowerUsage") / 1e3,
            "temperature_c": lambda: int(self._gpu_ask("nvmlDeviceGetTemperature", TEMPERATURE_GPU)),
            "sm_clock_mhz": lambda: int(self._gpu_ask("nvmlDeviceGetClockInfo", SM_CLOCK)),
            "sm_clock_max_mhz": lambda: int(self._gpu_ask("nvmlDeviceGetMaxClockInfo", SM_CLOCK)),
            "memory_clock_mhz": lambda: int(self._gpu_ask("nvmlDeviceGetClockInfo", MEMORY_CLOCK)),
            "throttle": self._throttle,
            "throttled_s": self._throttled,
            "foreign": self._foreign,
        }
        found: dict[str, Any] = {}
        for name, question in questions.items():
            try:
                found[name] = question()
            except DeviceError as error:
                reasons[name] = error.reason
        return State(**found, reasons=reasons)

    def energy_j(self) -> float:
        """See :meth:`Device.energy_j`."""
        if self.mig:
            raise DeviceError("a MIG instance has no energy counter: the GPU's counts all its instances together")
        return float(self._gpu_ask("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def own_bytes(self) -> int:
        """See :meth:`Device.own_bytes`."""
        processes = self._processes()
        for process in processes:
            if process.pid == self._pid:
                if process.bytes is None:
                    raise DeviceError("NVML lists this process, but not its memory")
                return process.bytes
        if not processes:
            raise DeviceError("NVML lists no process here: a container hides them, or none has a CUDA context")
        raise DeviceError(
            f"NVML lists {len(processes)} process{'es' if len(processes) > 1 else ''}, none by this one's id "
            f"{self._pid}: this container has process ids of its own"
        )

    def _foreign(self) -> tuple[Foreign, ...]:
        processes = self._processes()
        others = tuple(process for process in processes if process.pid != self._pid)
        if len(others) < len(processes) or not self._context:
            return others
        # Ids of another namespace: one of those listed is this process, it cannot be told which.
        return tuple(Foreign(None, None) for _ in others[1:])

    def _processes(self) -> list[Foreign]:
        listed = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return [Foreign(int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in listed]

    def _throttle(self) -> tuple[str, ...]:
        try:
            bits = int(self._gpu_ask("nvmlDeviceGetCurrentClocksEventReasons"))
        except DeviceError as error:
            if error.code not in (None, OLD_DRIVER):
                raise
            bits = int(self._gpu_ask("nvmlDeviceGetCurrentClocksThrottleReasons"))
        return tuple(why for bit, why in THROTTLE.items() if bits & bit)

    def _throttled(self) -> dict[str, float]:
        found, refused = {}, None
        for policy, why in POLICIES.items():
            try:
                found[why] = int(self._gpu_ask("nvmlDeviceGetViolationStatus", policy).violationTime) / 1e9
            except DeviceError as error:
                refused = error
        if not found and refused is not None:
            raise refused
        return found

    def _ask(self, function: str, *args: Any) -> Any:
        return self._library.call(function, self._handle, *args)

    def _gpu_ask(self, function: str, *args: Any) -> Any:
        return self._library.call(function, self._gpu, *args)
