"""NVML's replies as they come from different machines, and what a record makes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.devices import DeviceError, Foreign, NullDevice, NvmlDevice, State, disturbances, open_device
from harness.devices.border import TEXTS, Nvml
from harness.devices.device import Device
from harness.devices.finding import by_mask, by_uuid
from harness.devices.replay import Entry, Recorder, Replay
from harness.diagnosis import examine, examine_device

PID = 4242
WHOLE = 0xFFFFFFFF
"""NVML's instance id of a process on a GPU that is not cut up."""
A, B = "GPU-1111aaaa-0000-0000-0000-000000000001", "GPU-2222bbbb-0000-0000-0000-000000000002"
MIG = "MIG-3333cccc-0000-0000-0000-000000000003"
NOT_SUPPORTED, NOT_FOUND, LOST, INVALID = 3, 6, 15, 2


def entry(function: str, *args: Any, reply: Any = None, error: int | None = None) -> Entry:
    found: Entry = {"function": f"nvml{function}", "args": list(args)}
    return found | ({"reply": reply} if error is None else {"error": error})


def process(pid: int, held: int | None) -> dict[str, Any]:
    return {"pid": pid, "usedGpuMemory": held, "gpuInstanceId": WHOLE, "computeInstanceId": WHOLE}


def gpu(handle: str = "a", uuid: str = A, name: str = "NVIDIA H100", **changes: Entry) -> list[Entry]:
    """A healthy GPU with this process alone on it; ``changes`` replace replies by function."""
    replies = [
        entry("DeviceGetUUID", handle, reply=uuid),
        entry("DeviceGetName", handle, reply=name),
        entry("DeviceGetMigMode", handle, reply=[0, 0]),
        entry("DeviceGetMemoryInfo", handle, reply={"total": 80 << 30, "used": 3 << 30, "free": 77 << 30}),
        entry("DeviceGetPowerUsage", handle, reply=251_300),
        entry("DeviceGetTemperature", handle, 0, reply=54),
        entry("DeviceGetClockInfo", handle, 1, reply=1_755),
        entry("DeviceGetMaxClockInfo", handle, 1, reply=1_980),
        entry("DeviceGetClockInfo", handle, 2, reply=2_619),
        entry("DeviceGetCurrentClocksEventReasons", handle, reply=0x1),
        *(entry("DeviceGetViolationStatus", handle, policy, reply={"referenceTime": 1, "violationTime": 0})
          for policy in (0, 1, 2, 3, 5)),
        entry("DeviceGetComputeRunningProcesses", handle, reply=[process(PID, 2 << 30)]),
        entry("DeviceGetTotalEnergyConsumption", handle, reply=123_456_789),
    ]  # fmt: skip
    return [changes.get(reply["function"].removeprefix("nvml"), reply) for reply in replies]


def instance(**changes: Entry) -> list[Entry]:
    """A MIG instance ``m`` of the GPU ``a``."""
    return [
        *gpu(**changes),
        entry("DeviceGetUUID", "m", reply=MIG),
        entry("DeviceGetDeviceHandleFromMigDeviceHandle", "m", reply="a"),
        entry("DeviceGetMemoryInfo", "m", reply={"total": 10 << 30, "used": 1 << 30, "free": 9 << 30}),
        entry("DeviceGetComputeRunningProcesses", "m", reply=[process(PID, 1 << 30)]),
    ]


def device(entries: list[Entry], handle: str = "a", **how: Any) -> NvmlDevice:
    return NvmlDevice(Replay(entries), handle, **({"pid": PID} | how))


def test_a_healthy_gpu() -> None:
    found = device(gpu())
    assert (found.name, found.uuid, found.mig) == ("NVIDIA H100", A, False)
    assert found.energy_j() == 123_456.789
    assert found.own_bytes() == 2 << 30
    assert found.state() == State(
        memory_used_bytes=3 << 30, memory_total_bytes=80 << 30, power_w=251.3, temperature_c=54, sm_clock_mhz=1_755,
        sm_clock_max_mhz=1_980, memory_clock_mhz=2_619, throttle=(),
        throttled_s=dict.fromkeys(("power cap", "too hot", "sync boost", "board limit", "reliability"), 0.0), foreign=(),
    )  # fmt: skip


def refused(function: str, error: int, *args: Any) -> dict[str, Entry]:
    return {function: entry(function, "a", *args, error=error)}


@pytest.mark.parametrize(
    ("changes", "question", "reason"),
    [
        (refused("DeviceGetTotalEnergyConsumption", NOT_SUPPORTED), "energy_j", "this device does not support it"),
        (refused("DeviceGetTotalEnergyConsumption", LOST), "energy_j", "the GPU is lost"),
        (refused("DeviceGetTotalEnergyConsumption", 13), "energy_j", "the driver is too old"),
        (refused("DeviceGetTotalEnergyConsumption", 4), "energy_j", "no permission"),
        (refused("DeviceGetComputeRunningProcesses", LOST), "own_bytes", "the GPU is lost"),
        (
            {"DeviceGetComputeRunningProcesses": entry("DeviceGetComputeRunningProcesses", "a", reply=[])},
            "own_bytes", "lists no process here",
        ),
        (
            {"DeviceGetComputeRunningProcesses":
                entry("DeviceGetComputeRunningProcesses", "a", reply=[process(99_001, 2 << 30)])},
            "own_bytes", "lists 1 process, none by this one's id 4242: this container has process ids of its own",
        ),
        (
            {"DeviceGetComputeRunningProcesses":
                entry("DeviceGetComputeRunningProcesses", "a", reply=[process(PID, None)])},
            "own_bytes", "lists this process, but not its memory",
        ),
    ],
)  # fmt: skip
def test_what_a_device_refuses_is_null_with_a_reason(changes: dict[str, Entry], question: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        getattr(device(gpu(**changes)), question)()


def test_a_lost_gpu_still_gives_a_state() -> None:
    found = device([reply if reply["function"].endswith(("UUID", "Name")) else
                    {"function": reply["function"], "args": reply["args"], "error": LOST} for reply in gpu()])  # fmt: skip
    state = found.state()
    names = [name for name in State.__dataclass_fields__ if name != "reasons"]
    assert all(getattr(state, name) is None for name in names)
    assert sorted(state.reasons) == sorted(names)
    assert all("the GPU is lost" in reason for reason in state.reasons.values())


def test_the_older_name_of_the_clocks_reasons() -> None:
    old = refused("DeviceGetCurrentClocksEventReasons", 13)
    throttled = entry("DeviceGetCurrentClocksThrottleReasons", "a", reply=0x4 | 0x40 | 0x2)
    assert device([*gpu(**old), throttled]).state().throttle == ("power cap", "too hot (hardware)")


def test_one_policy_that_is_not_counted_does_not_hide_the_others() -> None:
    replies = [
        entry("DeviceGetViolationStatus", "a", 3, error=NOT_SUPPORTED) if reply["args"] == ["a", 3] else reply
        for reply in gpu()
    ]
    throttled = device(replies).state().throttled_s
    assert throttled is not None
    assert sorted(throttled) == ["power cap", "reliability", "sync boost", "too hot"]


def test_a_mig_instance_has_its_own_memory_and_no_energy() -> None:
    found = device(instance(), "m")
    assert (found.mig, found.uuid, found.name) == (True, MIG, "NVIDIA H100")
    assert found.own_bytes() == 1 << 30
    state = found.state()
    assert (state.memory_total_bytes, state.temperature_c) == (10 << 30, 54)
    with pytest.raises(DeviceError, match="the GPU's counts all its instances together"):
        found.energy_j()


@pytest.mark.parametrize(
    ("listed", "context", "foreign"),
    [
        ([PID], True, ()),
        ([PID, 7], True, (Foreign(7, 1 << 30),)),
        ([7], False, (Foreign(7, 1 << 30),)),
        ([90_001], True, ()),
        ([90_001, 90_002], True, (Foreign(None, None),)),
        ([], True, ()),
    ],
)
def test_processes_of_others(listed: list[int], context: bool, foreign: tuple[Foreign, ...]) -> None:
    """Ids above 90,000 are of the host, which this process in its container does not know."""
    reply = entry("DeviceGetComputeRunningProcesses", "a", reply=[process(pid, 1 << 30) for pid in listed])
    assert device(gpu(DeviceGetComputeRunningProcesses=reply), context=context).state().foreign == foreign


def host(*names: str) -> list[Entry]:
    """Two GPUs, the second cut into MIG instances."""
    first, second = names or ("NVIDIA H100", "NVIDIA H100")
    cut = {"DeviceGetMigMode": entry("DeviceGetMigMode", "b", reply=[1, 1])}
    return [
        entry("DeviceGetCount", reply=2),
        entry("DeviceGetHandleByIndex", 0, reply="a"),
        entry("DeviceGetHandleByIndex", 1, reply="b"),
        *gpu(name=first), *gpu("b", B, second, **cut),
        entry("DeviceGetMigDeviceHandleByIndex", "b", 0, reply="m"),
        entry("DeviceGetHandleByUUID", A, reply="a"),
        entry("DeviceGetHandleByUUID", MIG, reply="m"),
        entry("DeviceGetHandleByUUID", MIG.replace("MIG", "GPU"), error=NOT_FOUND),
        entry("DeviceGetHandleByUUID", "MIG-gone", error=NOT_FOUND),
        entry("DeviceGetHandleByUUID", "GPU-lost", error=LOST),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "handle"),
    [(None, "a"), ("0", "a"), ("0,1", "a"), (" 1 ", "m"), (A, "a"), ("GPU-1111", "a"), ("GPU-22", "m"), (MIG, "m")],
)
def test_masks(mask: str | None, handle: str) -> None:
    assert by_mask(Replay(host()), mask) == handle


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("", "hides all devices"),
        ("-1", "hides all devices"),
        ("NoDevFiles", "hides all devices"),
        ("2", "names device 2, NVML has 2"),
        ("GPU-9", "names GPU-9, which fits 0 of NVML's devices"),
        ("GPU-", "names GPU-, which fits 2 of NVML's devices"),
        ("MIG-gone", "not found"),
    ],
)
def test_masks_that_leave_nothing(mask: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        by_mask(Replay(host()), mask)


def test_an_index_among_unlike_gpus_is_ambiguous() -> None:
    mixed = host("NVIDIA H100", "NVIDIA T4")
    with pytest.raises(DeviceError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID or name a UUID"):
        by_mask(Replay(mixed), "0")
    assert by_mask(Replay(mixed), "0", "PCI_BUS_ID") == "a"
    assert by_mask(Replay(mixed), "GPU-11") == "a"


def test_torchs_uuid_is_a_gpus_or_an_instances() -> None:
    library = Replay(host())
    assert by_uuid(library, A.removeprefix("GPU-")) == by_uuid(library, A) == "a"
    assert by_uuid(library, MIG.removeprefix("MIG-")) == "m"
    with pytest.raises(DeviceError, match="lost"):
        by_uuid(library, "lost")  # and not: not found as a MIG instance


def test_a_cpu_cell_and_a_masked_gpu_have_a_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Replay(host())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for found, reason in ((open_device("cpu", library), "no CUDA device"), (open_device("cuda", library), "hides all")):
        assert isinstance(found, NullDevice)
        state = found.state()
        assert state.power_w is None
        assert reason in state.reasons["power_w"]
        for question in (found.energy_j, found.own_bytes):
            with pytest.raises(DeviceError, match=reason):
                question()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert open_device("cuda", library).uuid == A


def _nvml() -> Nvml | DeviceError:
    try:
        return Nvml()
    except DeviceError as refusal:
        return refusal


def test_nvml_itself_or_its_reason() -> None:
    """Whichever this machine has: replies come back, refusals as our one error."""
    library = _nvml()
    if isinstance(library, DeviceError):
        assert library.reason.startswith("NVML: ")
        assert library.code in TEXTS
        return
    assert library.call("nvmlDeviceGetCount") >= 0
    with pytest.raises(DeviceError):
        library.call("nvmlDeviceGetHandleByUUID", "GPU-none")
    with pytest.raises(DeviceError, match="has no nvmlNothing"):
        library.call("nvmlNothing")


def test_a_recording_replays() -> None:
    recorder = Recorder(Replay(gpu(**refused("DeviceGetTotalEnergyConsumption", NOT_SUPPORTED))))
    live = NvmlDevice(recorder, "a", pid=PID)
    state = live.state()
    with pytest.raises(DeviceError):
        live.energy_j()
    again = NvmlDevice(Replay(recorder.entries), "a", pid=PID)
    assert again.state() == state
    with pytest.raises(DeviceError, match="does not support"):
        again.energy_j()
    with pytest.raises(DeviceError, match="not in the recording"):
        Replay([]).call("nvmlDeviceGetCount")


def states(**changes: Any) -> State:
    return State(**({"throttle": (), "throttled_s": {"power cap": 7.0, "too hot": 1.0}, "foreign": ()} | changes))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (states(), states(), []),
        (states(), states(throttled_s={"power cap": 7.02, "too hot": 1.0}), []),
        (states(), states(throttled_s={"power cap": 7.5, "too hot": 1.0}),
         ["clocks held down for 0.50 s of 3.00 s: power cap"]),
        (states(throttled_s=None), states(throttled_s=None, throttle=("too hot (driver)",)),
         ["clocks held down: too hot (driver)"]),
        (states(), states(foreign=(Foreign(7, 3 << 30),)), ["1 other process on the GPU, holding 3.0 GiB"]),
        (states(foreign=(Foreign(7, 1 << 30),)), states(foreign=(Foreign(7, 1 << 30), Foreign(9, None))),
         ["2 other processes on the GPU, holding 1.0 GiB"]),
        (states(foreign=(Foreign(None, None),)), states(), ["1 other process on the GPU"]),
        (State(), State(), []),
    ],
)  # fmt: skip
def test_disturbances(before: State, after: State, found: list[str]) -> None:
    assert disturbances(before, after, 3.0) == found


def test_doctor_names_what_a_device_does_not_tell() -> None:
    busy = entry("DeviceGetComputeRunningProcesses", "a", reply=[process(7, 1 << 30)])
    changes = refused("DeviceGetTotalEnergyConsumption", NOT_SUPPORTED) | refused("DeviceGetPowerUsage", NOT_SUPPORTED)
    findings = list(examine_device(Replay(gpu(**changes, DeviceGetComputeRunningProcesses=busy)), "a", "GPU 0"))
    assert [(finding.name, finding.state) for finding in findings] == [
        ("GPU 0: energy", "missing"), ("GPU 0: power_w", "missing"), ("GPU 0", "missing"),
    ]  # fmt: skip
    assert "energy_per_step_j is null" in findings[0].meaning
    assert "1 other process" in findings[2].detail
    healthy = gpu(DeviceGetComputeRunningProcesses=entry("DeviceGetComputeRunningProcesses", "a", reply=[]))
    (fine,) = examine_device(Replay(healthy), "a", "GPU 0")
    assert (fine.state, fine.detail) == ("ok", "counter at 123457 J")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device here")
@pytest.mark.parametrize(("built", "detail"), [(None, "built without CUDA"), ("13.0", "sees no CUDA device")])
def test_doctor_says_that_torch_sees_no_device(built: str | None, detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    found = next(finding for finding in examine(Path("store")) if finding.name == "torch")
    assert found.state == "ok"
    assert detail in found.detail
    assert "GPU profiles are unavailable" in found.meaning


def test_the_three_devices_are_one_kind() -> None:
    assert issubclass(NvmlDevice, Device)
    assert issubclass(NullDevice, Device)
