"""What a cell may ask of its device, whether there is one or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NoReturn

THROTTLED = 0.01
"""Share of a timed window during which clocks may be held down before it counts as disturbed (our choice)."""


class DeviceError(Exception):
    """The device does not tell; the message is the reason, in one line.

    Args:
        reason: why, for a record.
        code: NVML's return code, where it was NVML that refused.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


@dataclass(frozen=True)
class Foreign:
    """A process of somebody else on the device.

    Args:
        pid: as NVML numbers processes; None where it cannot be told which of those listed are foreign.
        bytes: what it holds, or None where NVML does not tell.
    """

    pid: int | None
    bytes: int | None


@dataclass(frozen=True)
class State:
    """The device at one moment; what it does not tell is None, and ``reasons`` says why under the field's name.

    Args:
        memory_used_bytes: of the whole device, all processes together.
        memory_total_bytes: of the device.
        power_w: averaged by the driver over its own window.
        temperature_c: of the chip.
        sm_clock_mhz: now.
        sm_clock_max_mhz: the highest it could be.
        memory_clock_mhz: now.
        throttle: why clocks are held down now.
        throttled_s: for how long clocks have been held down since the driver was loaded, by reason.
        foreign: other processes that compute here.
        reasons: why a field is None.
    """

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle: tuple[str, ...] | None = None
    throttled_s: dict[str, float] | None = None
    foreign: tuple[Foreign, ...] | None = None
    reasons: dict[str, str] = field(default_factory=dict)


class Device(ABC):
    """One GPU, or one MIG instance of it."""

    name: str
    uuid: str

    @abstractmethod
    def state(self) -> State:
        """The device now; never raises."""

    @abstractmethod
    def energy_j(self) -> float:
        """Joules since the driver was loaded.

        Raises:
            DeviceError: no such counter, or it counts more than this device.
        """

    @abstractmethod
    def own_bytes(self) -> int:
        """What this process holds on the device: tensors, the allocator's cache, the CUDA context.

        Raises:
            DeviceError: NVML does not tell, or does not know this process by its id.
        """


class NullDevice(Device):
    """No device: every answer is null, with the same reason."""

    name = uuid = "none"

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def state(self) -> State:
        """All None."""
        names = [name for name in State.__dataclass_fields__ if name != "reasons"]
        return State(reasons=dict.fromkeys(names, self.reason))

    def energy_j(self) -> NoReturn:
        """Raises the reason."""
        raise DeviceError(self.reason)

    def own_bytes(self) -> NoReturn:
        """Raises the reason."""
        raise DeviceError(self.reason)


def disturbances(before: State, after: State, seconds: float) -> list[str]:
    """What on the device may have changed the times of a window, in words.

    Args:
        before: the device when the window began.
        after: the device when it ended.
        seconds: its length.
    """
    return _company(before, after) + _throttling(before, after, seconds)


def _company(before: State, after: State) -> list[str]:
    found = {(process.pid, index): process for s in (before, after) for index, process in enumerate(s.foreign or ())}
    processes = {pid if pid is not None else f"?{index}": process for (pid, index), process in found.items()}
    if not processes:
        return []
    sizes = sum(process.bytes or 0 for process in processes.values())
    held = f", holding {sizes / 2**30:.1f} GiB" if sizes else ""
    return [f"{len(processes)} other process{'es' if len(processes) > 1 else ''} on the GPU{held}"]


def _throttling(before: State, after: State, seconds: float) -> list[str]:
    if before.throttled_s is None or after.throttled_s is None:
        return [f"clocks held down: {why}" for why in after.throttle or ()]
    held = {why: after.throttled_s[why] - before.throttled_s.get(why, 0.0) for why in after.throttled_s}
    return [
        f"clocks held down for {time:.2f} s of {seconds:.2f} s: {why}"
        for why, time in held.items()
        if time > THROTTLED * seconds
    ]
