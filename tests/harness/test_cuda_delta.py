"""The whole device's rise, which stands in where NVML hides this process: before the context, after the step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness import cuda, memory
from harness.devices import NullDevice, NvmlDevice
from harness.devices.replay import Replay
from tests.harness.test_nvml import PID, entry, gpu

GIB = 1 << 30


def used(*gib: int) -> list[NvmlDevice]:
    """A device that is asked once for each number; a container hides its processes."""
    found = []
    for held in gib:
        changes = {
            "DeviceGetMemoryInfo": entry(
                "DeviceGetMemoryInfo", "a", reply={"total": 80 * GIB, "used": held * GIB, "free": (80 - held) * GIB}
            ),
            "DeviceGetComputeRunningProcesses": entry("DeviceGetComputeRunningProcesses", "a", reply=[]),
        }
        found.append(NvmlDevice(Replay(gpu(**changes)), "a", pid=PID))
    return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NvmlDevice]]:
    """Devices that are opened one after the other; the allocator's own numbers are nought."""
    opened: list[NvmlDevice] = []
    monkeypatch.setattr(cuda, "_BEFORE", list(cuda._BEFORE))
    monkeypatch.setattr(cuda, "open_device", lambda kind: opened.pop(0))
    monkeypatch.setattr(cuda, "workspace_bytes", lambda: None)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(
        cuda, "_read", lambda: dict.fromkeys(("allocated_bytes", "reserved_bytes", "requested_bytes"), 0)
    )
    yield opened
    cuda._HIGHEST.clear()


def test_the_rise_is_since_before_the_context(device: list[NvmlDevice]) -> None:
    device += used(2, 5, 5)
    cuda.before_context()
    with cuda.peaks("cuda") as found:
        pass
    assert (found.process, found.device, found.device_delta) == (None, 5 * GIB, 3 * GIB)
    assert "lists no process here" in found.reasons["nvml_process_bytes"]
    facts = memory._cuda_facts(None, found)
    assert facts == {"nvml_device_bytes": 5 * GIB, "nvml_device_delta_bytes": 3 * GIB}


def test_what_others_gave_back_is_a_fall(device: list[NvmlDevice]) -> None:
    device += used(6, 5, 5)
    cuda.before_context()
    with cuda.peaks("cuda") as found:
        pass
    assert found.device_delta == -GIB


def test_without_a_first_look_there_is_a_reason(device: list[NvmlDevice], monkeypatch: pytest.MonkeyPatch) -> None:
    device += used(5, 5)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    cuda.before_context()  # too late: the context is there already
    with cuda.peaks("cuda") as found:
        pass
    assert found.device_delta is None
    assert memory._cuda_facts(None, found)["nvml_device_reason"].startswith("nobody asked NVML before")


def test_without_nvml_its_reason(device: list[NvmlDevice], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "open_device", lambda kind: NullDevice("no driver"))
    cuda.before_context()
    with cuda.peaks("cuda") as found:
        pass
    assert found.device_delta is None
    assert found.reasons["nvml_device_delta_bytes"] == found.reasons["nvml_process_bytes"] == "no driver"
