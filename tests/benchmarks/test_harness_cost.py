"""What the harness adds to a step: the timed step inside it against the bare loop, paired."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from harness import registry, timing
from harness.build import Bench, Trainer, open_bench
from harness.contracts import reset_states
from harness.cuda import StepClock
from tests.harness.benches import make_spec

ROUNDS = 12
STEPS = 10


@pytest.fixture
def bench() -> Bench:
    torch.set_num_threads(1)
    spec = make_spec(
        data=registry.complete("datasets", "digits", {}, "test"),
        net={"channels": [32, 64], "norm": "per_step"},
        batch=64,
    )
    return open_bench(spec)[0]


def bare(trainer: Trainer, bench: Bench) -> None:
    """The loop that a user would write, on the same objects; a step's tensors end with it, as they do in the harness."""
    for _ in range(STEPS):
        bare_step(trainer, *bench.batch)


def bare_step(trainer: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
    reset_states(trainer.model)
    logits = trainer.model(x)
    trainer.loss.criterion(logits.flatten(0, 1), y.repeat(len(x))).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)


def inside(trainer: Trainer, bench: Bench) -> None:
    timing.timed(trainer, bench.batch, "cpu", STEPS)


def cpu_seconds(run: Callable[[Trainer, Bench], None], trainer: Trainer, bench: Bench) -> float:
    """Processor time of this process: what else the machine does is no cost of the harness."""
    begin = time.process_time()
    run(trainer, bench)
    return time.process_time() - begin


def test_a_timed_step_costs_at_most_one_percent(bench: Bench, benchmark: BenchmarkFixture) -> None:
    trainer = bench.trainer()
    timing.warm_up(trainer, bench.batch, "cpu")
    ratios = []

    def rounds() -> None:
        for number in range(ROUNDS):
            order = (bare, inside) if number % 2 == 0 else (inside, bare)
            seconds = {run: cpu_seconds(run, trainer, bench) for run in order}
            ratios.append(seconds[inside] / seconds[bare])

    benchmark.pedantic(rounds, rounds=1)
    benchmark.extra_info["ratio to the bare loop"] = median(ratios)
    assert median(ratios) <= 1.01, sorted(ratios)


def test_the_clock_itself_is_negligible(benchmark: BenchmarkFixture) -> None:
    clock = StepClock("cpu")

    def tick() -> None:
        with clock.step():
            pass

    benchmark(tick)
    assert benchmark.stats["median"] < 20e-6
