"""What nvidia-ml-py itself makes of a driver's answers: its return codes, structs and wrappers are the real ones.

Below it stands a driver in Python that fills its ctypes structures and gives return codes, as libnvidia-ml does. It holds
the replies that other tests have written down against what the binding hands on: the same functions, types and fields.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from harness.devices import DeviceError, NvmlDevice, nvml
from harness.devices.border import TEXTS, Nvml
from harness.devices.finding import by_mask
from harness.devices.replay import Recorder, Replay
from tests.harness.test_nvml import PID, WHOLE, A, entry, gpu

CODES = {
    "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "INSUFFICIENT_POWER": 8,
    "DRIVER_NOT_LOADED": 9, "TIMEOUT": 10, "LIBRARY_NOT_FOUND": 12, "FUNCTION_NOT_FOUND": 13, "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16, "OPERATING_SYSTEM": 17, "LIB_RM_VERSION_MISMATCH": 18, "MEMORY": 20, "NO_DATA": 21,
}  # fmt: skip
"""The codes that :data:`harness.devices.border.TEXTS` explains, by the binding's names."""
REASONS = {
    "SwPowerCap": "power cap", "HwSlowdown": "hardware slowdown", "SyncBoost": "sync boost",
    "SwThermalSlowdown": "too hot (driver)", "HwThermalSlowdown": "too hot (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
}  # fmt: skip
POLICIES = {
    "POWER": "power cap", "THERMAL": "too hot", "SYNC_BOOST": "sync boost", "BOARD_LIMIT": "board limit",
    "RELIABILITY": "reliability",
}  # fmt: skip
MODULE: Any = pynvml


def test_numbers_are_the_bindings() -> None:
    assert {name: getattr(MODULE, f"NVML_ERROR_{name}") for name in CODES} == CODES
    assert set(TEXTS) == set(CODES.values())
    assert {getattr(MODULE, f"nvmlClocksEventReason{name}"): why for name, why in REASONS.items()} == nvml.THROTTLE
    assert {getattr(MODULE, f"NVML_PERF_POLICY_{name}"): why for name, why in POLICIES.items()} == nvml.POLICIES
    numbers = (MODULE.NVML_CLOCK_SM, MODULE.NVML_CLOCK_MEM, MODULE.NVML_TEMPERATURE_GPU, CODES["FUNCTION_NOT_FOUND"])
    assert numbers == (nvml.SM_CLOCK, nvml.MEMORY_CLOCK, nvml.TEMPERATURE_GPU, nvml.OLD_DRIVER)


class Driver:
    """libnvidia-ml with one H100, this process and another one on it.

    Args:
        refuse: return codes by function, as the C library calls it.
        processes: ``(pid, bytes)`` of those that compute; None for bytes that the driver does not tell.
    """

    def __init__(self, refuse: dict[str, int], processes: list[tuple[int, int | None]]) -> None:
        self.refuse, self.processes, self.open = refuse, processes, 0

    def function(self, name: str) -> Callable[..., int]:
        """The C function; the binding raises for one that an old driver lacks."""
        if self.refuse.get(name) == CODES["FUNCTION_NOT_FOUND"]:
            raise MODULE.NVMLError(CODES["FUNCTION_NOT_FOUND"])
        target = getattr(self, name)
        return lambda *args: self.refuse.get(name) or target(*args) or 0

    def nvmlInitWithFlags(self, flags: int) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlErrorString(self, code: Any) -> bytes:
        return b"words of the driver's own"

    def nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = 1

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        return 0 if index.value == 0 else CODES["INVALID_ARGUMENT"]

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, device: Any) -> int:
        return 0 if uuid.value == A.encode() else CODES["NOT_FOUND"]

    def nvmlDeviceGetUUID(self, device: Any, text: Any, length: Any) -> None:
        text.value = A.encode()

    def nvmlDeviceGetName(self, device: Any, text: Any, length: Any) -> None:
        text.value = b"NVIDIA H100"

    def nvmlDeviceGetMigMode(self, device: Any, current: Any, pending: Any) -> None:
        current._obj.value = pending._obj.value = 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used, memory._obj.free = 80 << 30, 3 << 30, 77 << 30

    def nvmlDeviceGetPowerUsage(self, device: Any, milliwatts: Any) -> None:
        milliwatts._obj.value = 251_300

    def nvmlDeviceGetTemperature(self, device: Any, sensor: Any, found: Any) -> None:
        found._obj.value = 54 if sensor.value == MODULE.NVML_TEMPERATURE_GPU else 0

    def nvmlDeviceGetClockInfo(self, device: Any, kind: Any, found: Any) -> None:
        found._obj.value = {MODULE.NVML_CLOCK_SM: 1_755, MODULE.NVML_CLOCK_MEM: 2_619}[kind.value]

    def nvmlDeviceGetMaxClockInfo(self, device: Any, kind: Any, found: Any) -> None:
        found._obj.value = 1_980

    def nvmlDeviceGetCurrentClocksEventReasons(self, device: Any, bits: Any) -> None:
        bits._obj.value = MODULE.nvmlClocksEventReasonGpuIdle

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: Any, bits: Any) -> None:
        bits._obj.value = MODULE.nvmlClocksThrottleReasonSwPowerCap

    def nvmlDeviceGetViolationStatus(self, device: Any, policy: Any, found: Any) -> None:
        found._obj.referenceTime, found._obj.violationTime = 1, 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, millijoules: Any) -> None:
        millijoules._obj.value = 123_456_789

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, found: Any) -> int:
        room, count._obj.value = count._obj.value, len(self.processes)
        if found is None or room < len(self.processes):
            return MODULE.NVML_ERROR_INSUFFICIENT_SIZE if self.processes else 0
        for place, (pid, held) in enumerate(self.processes):
            one = found[place]
            one.pid, one.gpuInstanceId, one.computeInstanceId = pid, WHOLE, WHOLE
            one.usedGpuMemory = MODULE.NVML_VALUE_NOT_AVAILABLE_ulonglong.value if held is None else held
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The binding on top of it."""
    found = Driver({}, [(PID, 2 << 30)])
    monkeypatch.setattr(MODULE, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(MODULE, "_nvmlGetFunctionPointer", found.function)
    monkeypatch.setattr(MODULE, "_nvmlLib_refcount", 0)
    return found


def asked(library: Any) -> NvmlDevice:
    """Everything that is ever asked of a device."""
    device = NvmlDevice(library, by_mask(library, None), pid=PID)
    device.state()
    for question in (device.energy_j, device.own_bytes):
        try:
            question()
        except DeviceError:
            continue
    return device


def shape(reply: Any) -> Any:
    """Types and field names of a reply."""
    if isinstance(reply, dict):
        return {name: shape(value) for name, value in reply.items()}
    return [shape(value) for value in reply] if isinstance(reply, list) else type(reply)


def test_written_replies_are_what_the_binding_hands_on(driver: Driver) -> None:
    library = Nvml()
    recorder = Recorder(library)
    device = asked(recorder)
    library.close()
    assert driver.open == 0
    written = {(each["function"], tuple(each["args"][1:])): each["reply"] for each in gpu()}
    seen = {(each["function"], tuple(each["args"][1:])): each["reply"] for each in recorder.entries}
    assert written.keys() <= seen.keys()
    assert seen.keys() - written.keys() == {("nvmlDeviceGetCount", ()), ("nvmlDeviceGetHandleByIndex", ())}
    assert {key: shape(seen[key]) for key in written} == {key: shape(reply) for key, reply in written.items()}
    assert {key: seen[key] for key in written} == written
    again = NvmlDevice(Replay([*recorder.entries, *gpu("handle 0")]), "handle 0", pid=PID)
    assert (again.name, again.energy_j(), again.own_bytes()) == (device.name, 123_456.789, 2 << 30)


@pytest.mark.parametrize("name", sorted(CODES))
def test_every_return_code_crosses_the_border_once(name: str, driver: Driver) -> None:
    driver.refuse["nvmlDeviceGetTotalEnergyConsumption"] = CODES[name]
    with pytest.raises(DeviceError) as refused:
        asked(Nvml()).energy_j()
    assert refused.value.code == CODES[name]
    assert TEXTS[CODES[name]] in refused.value.reason
    assert "nvmlDeviceGetTotalEnergyConsumption" in refused.value.reason


def test_a_code_that_nobody_knows_keeps_nvmls_words(driver: Driver) -> None:
    driver.refuse["nvmlDeviceGetTotalEnergyConsumption"] = MODULE.NVML_ERROR_INVALID_STATE
    with pytest.raises(DeviceError) as refused:
        asked(Nvml()).energy_j()
    assert refused.value.code == 29
    assert "words of the driver's own" in refused.value.reason


def test_an_old_driver_has_the_reasons_older_name(driver: Driver) -> None:
    driver.refuse["nvmlDeviceGetCurrentClocksEventReasons"] = CODES["FUNCTION_NOT_FOUND"]
    assert asked(Nvml()).state().throttle == ("power cap",)


def test_a_lost_gpu_and_a_process_without_bytes(driver: Driver) -> None:
    driver.processes[:] = [(PID, None), (7, 1 << 30)]
    device = asked(Nvml())
    assert [(one.pid, one.bytes) for one in device.state().foreign or ()] == [(7, 1 << 30)]
    with pytest.raises(DeviceError, match="lists this process, but not its memory"):
        device.own_bytes()
    driver.refuse |= dict.fromkeys(
        (name for name in vars(Driver) if name.startswith("nvmlDevice")), CODES["GPU_IS_LOST"]
    )
    state = device.state()
    assert state.memory_used_bytes is None
    assert all("the GPU is lost" in reason for reason in state.reasons.values())


def test_without_a_driver(driver: Driver) -> None:
    driver.refuse["nvmlInitWithFlags"] = CODES["DRIVER_NOT_LOADED"]
    with pytest.raises(DeviceError, match="the NVIDIA driver is not loaded"):
        Nvml()


def test_the_structs_have_the_written_fields() -> None:
    """As ctypes has them: a field that the binding drops or renames is noticed."""
    fields = {name: [field for field, _ in getattr(MODULE, name)._fields_]
              for name in ("c_nvmlMemory_t", "c_nvmlProcessInfo_t", "c_nvmlViolationTime_t")}  # fmt: skip
    replies = {each["function"]: each["reply"] for each in gpu()}
    assert sorted(replies["nvmlDeviceGetMemoryInfo"]) == sorted(fields["c_nvmlMemory_t"])
    assert list(replies["nvmlDeviceGetComputeRunningProcesses"][0]) == fields["c_nvmlProcessInfo_t"]
    assert sorted(replies["nvmlDeviceGetViolationStatus"]) == sorted(fields["c_nvmlViolationTime_t"])
    assert ctypes.sizeof(MODULE.c_nvmlMemory_t) == 24
    assert entry("DeviceGetCount", reply=1)["function"] == "nvmlDeviceGetCount"
