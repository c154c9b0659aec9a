"""Step times: the statistics on known samples, and the harness's own cost and pairing on real steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import timing
from harness.build import Trainer
from harness.contracts import Loss, Method, StagedModel, StepOutput
from tests.harness.benches import make_bench, make_spec


def rounds(method: list[list[float]], baseline: list[list[float]], foreign: float | None = 0.0) -> timing.Rounds:
    return timing.Rounds(method, baseline, warmup=3, foreign=foreign)


def test_ratio_is_taken_round_by_round() -> None:
    """The machine slows down fourfold half way; the method is always 1.5 times the baseline."""
    base = [[1.0, 1.0]] * 6 + [[4.0, 4.0]] * 6
    found = timing.summarise(rounds([[1.5 * t for t in r] for r in base], base), 8, "bptt", "cpu", None)
    assert found.ratio == found.ratio_low == found.ratio_high == 1.5
    assert found.paired
    assert found.verdict == "noisy"
    assert found.drift == pytest.approx(3.0)
    assert len(found.samples_s) == 24


def test_statistics_of_steady_samples() -> None:
    samples = [[0.010, 0.011], [0.010, 0.0105], [0.0102, 0.0101]]
    found = timing.summarise(rounds(samples, []), 32, "bptt", "cpu", "this is the baseline")
    flat = np.array(samples).ravel()
    assert found.step_time_s == np.median(flat)
    assert found.samples_per_s == pytest.approx(32 / np.median(flat))
    assert found.iqr_s == pytest.approx(np.subtract(*np.percentile(flat, [75, 25])))
    assert found.ci_low_s <= found.step_time_s <= found.ci_high_s
    assert found.verdict == "stable"
    assert found.ratio is None
    assert found.reasons["ratio"] == "this is the baseline"
    assert not found.paired


@pytest.mark.parametrize(
    ("foreign", "verdict"), [(0.0, "stable"), (0.4, "stable"), (0.9, "disturbed"), (None, "stable")]
)
def test_other_processes_disturb(foreign: float | None, verdict: str) -> None:
    found = timing.summarise(rounds([[1.0], [1.0], [1.0]], [], foreign), 1, "bptt", "cpu", "x")
    assert found.verdict == verdict
    assert bool(found.disturbances) == (verdict == "disturbed")


def test_interval_narrows_with_samples() -> None:
    draw = np.random.default_rng(1)
    few, many = draw.normal(1, 0.1, 10), draw.normal(1, 0.1, 1000)
    widths = [np.subtract(*timing._interval(values)[::-1]) for values in (few, many)]
    assert widths[1] < widths[0]


class Sleeps(Method):
    """A step that takes as long as it is told."""

    name, summary, paper, gradient = "sleeps", "-", "-", "exact"
    seconds = 0.004

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        time.sleep(self.seconds)
        return StepOutput(torch.zeros(()), torch.zeros(len(y), 5))


def test_paired_rounds_find_a_known_ratio() -> None:
    bench = make_bench(make_spec())
    slow, fast = Sleeps(), Sleeps()
    slow.seconds, fast.seconds = 0.06, 0.03  # a busy machine wakes a sleeper some milliseconds late
    trainers = [Trainer(bench.spec, m, bench.prepared(m)) for m in (slow, fast)]
    measured = timing._rounds(bench.batch, "cpu", trainers[0], trainers[1])
    found = timing.summarise(measured, 6, "bptt", "cpu", None)
    assert found.ratio == pytest.approx(2.0, rel=0.3)
    assert timing.ROUNDS_MIN <= len(measured.method) == len(measured.baseline) <= timing.ROUNDS


def test_warm_up_waits_until_times_agree() -> None:
    bench = make_bench(make_spec())

    class Settles(Sleeps):
        calls = 0

        def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
            self.calls += 1
            self.seconds = max(0.02, 1.28 / 2**self.calls)  # halved each time: no delay makes three of them agree
            return super().step(model, x, y, loss, update)

    method = Settles()
    count, last = timing.warm_up(Trainer(bench.spec, method, bench.prepared(method)), bench.batch, "cpu")
    assert count >= 7, "three settled steps after the fifth, which a busy machine may make look like them"
    assert 0.02 <= last < 0.2


def test_baseline_has_no_ratio_to_itself() -> None:
    found = timing.measure(make_bench(make_spec("bptt")))
    assert found.ratio is None
    assert found.step_time_s > 0


def test_method_is_timed_beside_its_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = Sleeps()
    asleep.seconds = 0.2
    asked: list[str] = []
    monkeypatch.setattr(timing, "build_method", lambda spec, name: asked.append(name) or asleep)
    found = timing.measure(make_bench(make_spec("checkpoint")))
    assert asked == ["bptt"]
    assert found.paired
    assert found.baseline_step_time_s is not None
    assert found.ratio is not None
    assert found.ratio_low is not None
    assert found.ratio_high is not None
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.baseline_step_time_s >= asleep.seconds
    assert found.ratio < 1, "a step of this net takes milliseconds, the baseline that stands in for BPTT sleeps longer"
