"""Workers for the tests of cells on several devices: what each rank does, well or badly."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import fidelity, memory, worker
from harness.build import Bench, Trainer, build_method
from harness.distributed import launch, norm, rank, ranks
from harness.executors.job import Job
from tests.harness import cells
from tests.harness.benches import make_bench, make_spec

CASES: dict[str, dict[str, Any]] = {
    "bptt": {"net": {"norm": "over_time"}},
    "bptt per step": {"method": "bptt"},
    "checkpoint-compress": {"net": {"norm": "over_time"}},
    "streamed": {"net": {"norm": "none"}},
    "streamed with batch normalisation": {"method": "streamed", "net": {"norm": "over_time"}},
    "sltt": {},
    "ottt": {},
    "ottt per step": {"method": "ottt", "options": {"update": "per_step"}},
}
"""Cells by name; the name is the method where none is given."""


def shared_bench(mine: ranks.Ranks, **fields: Any) -> Bench:
    """A bench in float64 whose batch two ranks share."""
    bench = make_bench(make_spec(**{"devices": 2, **fields}), torch.float64)
    whole = bench.batch
    return replace(bench, ranks=mine, batch=mine.share(whole), whole=lambda: whole)


def compare_gradients(job: Job) -> None:
    """Every case's gradient on two ranks against one process, from float64 up."""
    launch.run(job, _compare_gradients)


def _compare_gradients(text: str, folder: str, channel: Any) -> None:
    job, mine = Job.from_json(text), ranks.join("cpu")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, fields in CASES.items():
        bench = shared_bench(mine, **{"method": name, **fields})
        found[name] = {"one_process": fidelity.against_one_process(bench)}
        if name == "bptt":
            found[name] |= {"whole": fidelity.measure(bench, "initial").relative_l2, **_after_a_step(bench)}
    Path(job.store, f"rank-{mine.rank}.json").write_text(json.dumps(found))
    ranks.leave()


def _after_a_step(bench: Bench) -> dict[str, Any]:
    """How far weights and running statistics are from one process's after two steps of the optimizer."""
    assert bench.whole is not None
    alone = replace(bench, batch=bench.whole(), ranks=ranks.ALONE)
    trainers = [made.trainer() for made in (bench, alone)]
    for trainer, made in zip(trainers, (bench, alone), strict=True):
        for _ in range(2):
            trainer.step(*made.batch)
    ours, theirs = (trainer.model.state_dict() for trainer in trainers)
    return {
        "keys": list(ours) == list(theirs),
        "apart": max(float((ours[key] - theirs[key]).abs().max()) for key in theirs),
        "synchronised": norm.synchronised(trainers[0].model),
        "plain": norm.synchronised(trainers[1].model),
        "uneven": _uneven(trainers[0]),
    }


def _uneven(trainer: Trainer) -> str:
    """What a method meets that has other gradients on one rank than on the other."""
    first = next(trainer.model.parameters())
    first.grad = torch.ones_like(first) if trainer.ranks.first else None
    try:
        trainer.ranks.average([first], check=True)
    except RuntimeError as error:
        return str(error)
    return ""


def one_is_killed(job: Job) -> None:
    """The second rank is killed while it measures memory."""
    launch.run(job, _one_is_killed)


def _one_is_killed(text: str, folder: str, channel: Any) -> None:
    if os.environ["RANK"] == "1":
        memory.measure = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    rank.main(text, folder, channel)


def one_runs_out_of_memory(job: Job) -> None:
    """The second rank runs out of memory while the first waits for its gradients."""
    launch.run(job, _one_runs_out_of_memory)


def _one_runs_out_of_memory(text: str, folder: str, channel: Any) -> None:
    import datetime

    ranks.GRACE = datetime.timedelta(seconds=0.5)
    if os.environ["RANK"] == "1":

        def full(self: Any, parameters: Any, check: bool = False) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

        ranks.Ranks.average = full  # type: ignore[method-assign]
    rank.main(text, folder, channel)


def sleeps(job: Job) -> None:
    """Every rank says that it is there and sleeps."""
    launch.run(job, _sleeps)


def _sleeps(text: str, folder: str, channel: Any) -> None:
    cells.note(Job.from_json(text), rank=os.environ["RANK"], group=os.getpgrp())
    time.sleep(600)


def every_method(job: Job) -> None:
    """The job's method against one process, as far as it supports the cell; the reason where it does not."""
    launch.run(job, _every_method)


def _every_method(text: str, folder: str, channel: Any) -> None:
    job, mine = Job.from_json(text), ranks.join("cpu")
    bench = shared_bench(mine, method=job.spec.method.name, options=job.spec.method.options, net={"norm": "none"})
    reason = build_method(bench.spec).supports(
        bench.fresh(), Trainer(bench.spec, build_method(bench.spec), bench.fresh()).loss
    )
    found: Any = reason if reason is not None else fidelity.against_one_process(bench)
    if mine.first:
        Path(job.store, "found.json").write_text(json.dumps(found))
    ranks.leave()


def measure(job: Job) -> None:
    """The real worker."""
    worker.run_cell(job)
