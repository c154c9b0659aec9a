"""Time phase: untracked settled steps of the method and of its baseline, in interleaved rounds.

A ratio is taken round by round, so that drift of the machine's speed cancels. Nothing is traced or polled here.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from harness import energy
from harness.build import Batch, Bench, Trainer, build_method
from harness.contracts import Unavailable
from harness.cuda import StepClock
from harness.devices import Device, DeviceError, disturbances, open_device
from harness.distributed.ranks import ALONE, Ranks
from harness.record import RankTiming, Timing

WARM_STEPS, WARM_SECONDS, WARM_AGREE, WARM_WITHIN, WARM_LIMIT = 3, 0.3, 3, 0.10, 40
"""Warm up for at least so many steps and seconds, and until the last three agree within 10 %, or 40 steps passed.
(Seen: with two OpenMP threads the first calls of a 0.14 ms operator took 159, 121, 21, 4.8 ms.)"""
ROUNDS, ROUND_SECONDS = 12, 3.0
"""At least 6 and at most 12 rounds, fewer than 12 once three seconds have passed."""
ROUNDS_MIN = 6
ROUND_MIN_SECONDS = 0.02
"""A round repeats the step until it lasts this long, far above the clock's resolution."""
BOOTSTRAP = 1_000
NOISY_CV, NOISY_DRIFT = 0.10, 0.10
"""Above them a timing is marked noisy (our choice; every sample is kept)."""
FOREIGN_LOAD = 0.5
"""Processors kept busy by others, on average over the window, above which a timing is marked disturbed (our choice)."""


@dataclass(frozen=True)
class Rounds:
    """Seconds of every step, by round; steps of the warm-up; processors that others kept busy; the GPU's disturbances."""

    method: list[list[float]]
    baseline: list[list[float]]
    warmup: int
    foreign: float | None
    device: tuple[str, ...] = ()


def measure(bench: Bench, strict: bool = False) -> Timing:
    """The timing block of a cell.

    Args:
        bench: the cell.
        strict: do not time on a GPU that others use or whose clocks are held down.

    Raises:
        Unavailable: so it is, and ``strict``.
    """
    spec, method, ranks = bench.spec, bench.trainer(), bench.ranks
    baseline, reason = _baseline(bench)
    device = open_device(spec.device)
    before, begin = device.state(), time.perf_counter()
    if strict and (found := _everywhere(ranks, disturbances(before, before, 1.0))):
        raise Unavailable(f"this GPU is disturbed: {'; '.join(found)}", "wait until it is not, or run without --strict")
    rounds = _rounds(bench.batch, spec.device, method, baseline)
    after = device.state()
    found = disturbances(before, after, time.perf_counter() - begin)
    block = summarise(_slowest(rounds, found, ranks), spec.batch, spec.baseline, spec.device, reason)
    if ranks.size > 1:
        own = ranks.gather(float(np.median(np.concatenate([np.asarray(r) for r in rounds.method]))))
        block.ranks = [RankTiming(rank=rank, step_time_s=median) for rank, median in enumerate(own)]
        block.reasons["energy_per_step_j"] = "the counters of several devices are not read together"
    if spec.device == "cuda":
        block.device_before, block.device_after = asdict(before), asdict(after)
        if ranks.size == 1:
            _add_energy(block, device, lambda: method.step(*bench.batch))
    return block


def _everywhere(ranks: Ranks, found: list[str]) -> list[str]:
    """What disturbs any rank's device."""
    if ranks.size == 1:
        return found
    return [f"rank {rank}: {each}" for rank, mine in enumerate(ranks.gather(found)) for each in mine]


def _slowest(rounds: Rounds, disturbed: list[str], ranks: Ranks) -> Rounds:
    """A step is over when it is over on all ranks: every sample is the longest of theirs."""
    method, baseline = (
        [np.max(same, axis=0).tolist() for same in zip(*ranks.gather(mine), strict=True)]
        for mine in (rounds.method, rounds.baseline)
    )
    return replace(rounds, method=method, baseline=baseline, device=tuple(_everywhere(ranks, disturbed)))


def _add_energy(block: Timing, device: Device, step: Callable[[], object]) -> None:
    """Fill in the energy of a step, or the reason why there is none."""
    try:
        window = energy.measure(device, step, torch.cuda.synchronize, block.step_time_s)
    except DeviceError as error:
        block.reasons["energy_per_step_j"] = error.reason
        return
    block.energy_per_step_j, block.energy_window = window.energy_per_step_j, window.facts()
    del block.reasons["energy_per_step_j"]


def _baseline(bench: Bench) -> tuple[Trainer | None, str | None]:
    if bench.spec.method.name == bench.spec.baseline:
        return None, "this is the baseline"
    method, found, reason = build_method(bench.spec, bench.spec.baseline), None, None
    try:
        found = bench.trainer(method)
    except (MemoryError, RuntimeError) as error:
        reason = f"the baseline does not fit beside the method: {error}"
    reason = next((each for each in bench.ranks.gather(reason) if each is not None), None)
    return (found, None) if reason is None else (None, reason)


def _rounds(batch: Batch, device: str, method: Trainer, baseline: Trainer | None) -> Rounds:
    trainers, ranks = [method] if baseline is None else [baseline, method], method.ranks
    gc.collect()
    warm = [warm_up(trainer, batch, device) for trainer in trainers]
    repeats = ranks.agree([max(1, round(ROUND_MIN_SECONDS / max(seconds, 1e-9))) for _, seconds in warm])
    samples: list[list[list[float]]] = [[] for _ in trainers]
    load, begin = _Load(), time.perf_counter()
    for round_number in range(ROUNDS):
        order = range(len(trainers)) if round_number % 2 == 0 else reversed(range(len(trainers)))
        for which in order:
            samples[which].append(timed(trainers[which], batch, device, repeats[which]))
        if round_number + 1 >= ROUNDS_MIN and ranks.agree(time.perf_counter() - begin > ROUND_SECONDS):
            break
    return Rounds(samples[-1], [] if baseline is None else samples[0], warm[-1][0], load.foreign(ranks))


def warm_up(trainer: Trainer, batch: Batch, device: str) -> tuple[int, float]:
    """Step until the times settle; returns the number of steps and the last one's seconds."""
    begin, seen = time.perf_counter(), list[float]()
    while len(seen) < WARM_LIMIT:
        seen += timed(trainer, batch, device, 1)
        last = seen[-WARM_AGREE:]
        settled = len(seen) >= WARM_STEPS and max(last) - min(last) <= WARM_WITHIN * max(last)
        if trainer.ranks.agree(settled and time.perf_counter() - begin >= WARM_SECONDS):
            break
    return len(seen), seen[-1]


def timed(trainer: Trainer, batch: Batch, device: str, repeats: int) -> list[float]:
    """Seconds of ``repeats`` steps."""
    clock = StepClock(device)
    x, y = batch
    for _ in range(repeats):
        with clock.step():
            trainer.step(x, y)
    return clock.samples()


def summarise(rounds: Rounds, batch: int, baseline: str, device: str, unpaired: str | None) -> Timing:
    """Median, spread, ratio and verdict of the samples; every sample is kept."""
    flat = np.concatenate([np.asarray(r) for r in rounds.method])
    low, high = _interval(flat)
    median = float(np.median(flat))
    third = max(1, len(flat) // 3)
    drift = float(np.median(flat[-third:]) / np.median(flat[:third]) - 1)
    cv = float(flat.std(ddof=1) / flat.mean()) if len(flat) > 1 else 0.0
    disturbed = [*_disturbances(rounds.foreign), *rounds.device]
    verdict = "disturbed" if disturbed else "noisy" if cv > NOISY_CV or abs(drift) > NOISY_DRIFT else "stable"
    block = {
        "step_time_s": median,
        "iqr_s": float(np.subtract(*np.percentile(flat, [75, 25]))),
        "ci_low_s": low,
        "ci_high_s": high,
        "samples_s": flat.tolist(),
        "samples_per_s": batch / median,
        "clock": "cuda_event" if device == "cuda" else "perf_counter",
        "warmup_steps": rounds.warmup,
        "cv": cv,
        "drift": drift,
        "verdict": verdict,
        "disturbances": disturbed,
        "baseline": baseline,
        "paired": bool(rounds.baseline),
        "energy_per_step_j": None,
    }
    reasons = {"energy_per_step_j": "no energy counter on this device" if device == "cpu" else "no window was measured"}
    return Timing.model_validate({**block, **_ratio(rounds, unpaired, reasons), "reasons": reasons})


def _ratio(rounds: Rounds, unpaired: str | None, reasons: dict[str, str]) -> dict[str, float | None]:
    names = ("baseline_step_time_s", "ratio", "ratio_low", "ratio_high")
    if not rounds.baseline:
        reasons.update(dict.fromkeys(names, unpaired or "no baseline was timed"))
        return dict.fromkeys(names)
    pairs = zip(rounds.method, rounds.baseline, strict=True)
    ratios = np.array([np.median(ours) / np.median(theirs) for ours, theirs in pairs])
    low, high = _interval(ratios)
    base = float(np.median(np.concatenate([np.asarray(r) for r in rounds.baseline])))
    return dict(zip(names, (base, float(np.median(ratios)), low, high), strict=True))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median (percentile method, fixed seed)."""
    draws = np.random.default_rng(0).choice(values, (BOOTSTRAP, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _disturbances(foreign: float | None) -> list[str]:
    if foreign is not None and foreign > FOREIGN_LOAD:
        return [f"other processes kept {foreign:.2f} processors busy"]
    return []


class _Load:
    """Processors kept busy by other processes since construction, from ``/proc/stat``; None where there is none."""

    def __init__(self) -> None:
        self._start = self._read()

    def foreign(self, ranks: Ranks = ALONE) -> float | None:
        end = self._read()
        if self._start is None or end is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, end, strict=True))
        (own,) = ranks.total(own)
        return max(0.0, (busy - own) / wall) if wall > 0 else None

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        except OSError:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
        own = sum(os.times()[:2])
        return time.perf_counter(), (user + nice + system + irq + softirq) / ticks, own
