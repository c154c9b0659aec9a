"""Energy of a step: a window of its own after the timed rounds, between two ticks of the device's energy counter.

The counter moves about every 100 ms, so a window is at least five seconds long and begins and ends at a tick; what the
idle device draws from the last step to the closing tick is taken off. Nothing is polled while steps run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from harness.devices import Device, DeviceError

WINDOW_SECONDS = 5.0
"""Shortest window that one is allowed to believe: a tick is then at most 2 % of it."""
IDLE_SECONDS = 0.5
"""How long the idle device is watched before."""
TICK_SECONDS = 1.0
"""The counter stands still for longer: then there is none that could be used."""
POLL_SECONDS = 0.002
QUEUE_SECONDS = 0.5
"""Steps that are launched before the host waits for the device, in seconds of their own."""


@dataclass(frozen=True)
class Window:
    """One measurement.

    Args:
        energy_per_step_j: of the whole GPU, what it draws when idle included.
        joules: in the window.
        seconds: from the opening tick to the end of the last step.
        steps: in the window.
        idle_w: what the device drew before.
        temperature_start_c: of the chip; None where it is not told.
        temperature_end_c: likewise.
        source: what counted.
    """

    energy_per_step_j: float
    joules: float
    seconds: float
    steps: int
    idle_w: float
    temperature_start_c: int | None
    temperature_end_c: int | None
    source: str = "NVML total energy counter of the whole GPU"

    def facts(self) -> dict[str, Any]:
        """All of it, for a record."""
        return asdict(self)


def measure(
    device: Device,
    step: Callable[[], object],
    synchronise: Callable[[], object],
    step_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Window:
    """Repeat ``step`` until the window is full.

    Args:
        device: whose counter is read.
        step: launches one training step.
        synchronise: waits until the device has done all that was launched.
        step_seconds: about how long a step takes.
        clock: seconds, increasing.
        sleep: waits that many seconds.

    Raises:
        DeviceError: no counter, or one that does not move.
    """
    synchronise()
    first = _tick(device, clock, sleep)
    sleep(IDLE_SECONDS)
    begin = _tick(device, clock, sleep)
    idle_w = (begin[1] - first[1]) / (begin[0] - first[0])
    warm, steps = device.state().temperature_c, 0
    chunk = max(1, int(QUEUE_SECONDS / max(step_seconds, 1e-9)))
    while (end := clock()) - begin[0] < WINDOW_SECONDS or not steps:
        for _ in range(chunk):
            step()
        synchronise()
        steps += chunk
    hot = device.state().temperature_c
    last = _tick(device, clock, sleep)
    joules = last[1] - begin[1] - idle_w * (last[0] - end)
    if joules <= 0:
        raise DeviceError(f"the energy counter went from {begin[1]} J to {last[1]} J over a window of work")
    return Window(joules / steps, joules, end - begin[0], steps, idle_w, warm, hot)


def _tick(device: Device, clock: Callable[[], float], sleep: Callable[[float], object]) -> tuple[float, float]:
    """When the counter next moves, and what it says then."""
    start, before = clock(), device.energy_j()
    while (now := clock()) - start < TICK_SECONDS:
        if (joules := device.energy_j()) != before:
            return now, joules
        sleep(POLL_SECONDS)
    raise DeviceError(f"the energy counter did not move for {TICK_SECONDS:g} s")
