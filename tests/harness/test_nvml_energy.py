"""The energy window: on a device whose counter ticks like a real one, with time that the test makes pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from harness import energy, timing
from harness.devices import Device, DeviceError, NullDevice, State
from harness.record import Timing
from tests.harness.samples import sample_timing

IDLE_W, BUSY_W, TICK = 60.0, 400.0, 0.1


@dataclass
class Simulated(Device):
    """A GPU that draws 60 W when idle and 400 W in a step; its counter moves every 100 ms."""

    name = uuid = "simulated"
    now: float = 0.0
    joules: float = 0.0
    shown: float = 0.0
    ticked: float = 0.0
    stuck: bool = False

    def spend(self, seconds: float, watts: float) -> None:
        end = self.now + seconds
        while self.ticked + TICK <= end:
            self.joules += watts * (self.ticked + TICK - self.now)
            self.now = self.ticked = self.ticked + TICK
            self.shown = self.joules
        self.joules += watts * (end - self.now)
        self.now = end

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, IDLE_W)

    def clock(self) -> float:
        self.spend(1e-5, IDLE_W)
        return self.now

    def step(self) -> None:
        self.spend(0.02, BUSY_W)

    def energy_j(self) -> float:
        return 0.0 if self.stuck else self.shown

    def own_bytes(self) -> int:
        return 0

    def state(self) -> State:
        return State(temperature_c=40 + int(self.now))


def window(device: Simulated) -> energy.Window:
    return energy.measure(device, device.step, lambda: None, 0.02, device.clock, device.sleep)


@pytest.mark.parametrize("offset", [0.0, 0.013, 0.05, 0.099])
def test_joules_of_a_step(offset: float) -> None:
    device = Simulated()
    device.sleep(offset)
    found = window(device)
    assert found.seconds >= energy.WINDOW_SECONDS
    assert found.steps == pytest.approx(found.seconds / 0.02, rel=0.02)
    assert found.energy_per_step_j == pytest.approx(0.02 * BUSY_W, rel=0.01)
    assert found.idle_w == pytest.approx(IDLE_W, rel=0.01)
    assert found.temperature_end_c is not None
    assert found.temperature_start_c is not None
    assert found.temperature_end_c > found.temperature_start_c
    assert "counter" in found.facts()["source"]


def test_a_step_that_takes_longer_than_the_window_is_one_step() -> None:
    device = Simulated()
    found = energy.measure(device, lambda: device.spend(7.0, BUSY_W), lambda: None, 7.0, device.clock, device.sleep)
    assert found.steps == 1
    assert found.energy_per_step_j == pytest.approx(7 * BUSY_W, rel=0.02)


def test_a_counter_that_stands_still() -> None:
    with pytest.raises(DeviceError, match="did not move for 1 s"):
        window(Simulated(stuck=True))


def test_a_window_fills_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Simulated()
    block = sample_timing()
    found = window(device)
    monkeypatch.setattr(timing.energy, "measure", lambda *_: found)
    timing._add_energy(block, device, device.step)
    assert block.energy_per_step_j == pytest.approx(8.0, rel=0.01)
    assert block.energy_window["steps"] > 200
    assert Timing.model_validate(block.model_dump()) == block


def test_no_counter_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    block = sample_timing()
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)  # there may be no CUDA here
    timing._add_energy(block, NullDevice("a MIG instance"), lambda: None)
    assert block.energy_per_step_j is None
    assert block.reasons["energy_per_step_j"] == "a MIG instance"
    Timing.model_validate(block.model_dump())


def test_a_disturbed_gpu_marks_the_times() -> None:
    rounds = timing.Rounds([[0.1, 0.1]] * 6, [], 3, None)
    held = ("clocks held down for 0.50 s of 3.00 s: power cap",)
    for found, verdict in (((), "stable"), (held, "disturbed")):
        block = timing.summarise(replace(rounds, device=found), 8, "bptt", "cuda", "this is the baseline")
        assert block.verdict == verdict
        assert block.disturbances == list(found)
