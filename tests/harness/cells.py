"""Workers for the executor's tests: each does one thing that real cells do when they go wrong."""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from harness import announce, quiet
from harness.executors.job import NO_RECORD_EXIT_CODE, Job, Outcome
from harness.record import PhaseResult, Record
from harness.spec import CellSpec, Ref
from harness.store import Store


def spec(method="m", seed=0, **fields):
    values = {
        "method": Ref(name=method),
        "baseline": "bptt",
        "model": Ref(name="net"),
        "data": Ref(name="digits"),
        "T": 4,
        "batch": 2,
        "seed": seed,
        "profile": "cpu",
        "phases": ("memory",),
    }
    return CellSpec(**{**values, **fields})


def job(folder, run_id="r1", timeout_s=20.0, **fields):
    return Job(spec(**fields), "suite", "0" * 64, str(folder), run_id, timeout_s, 1, None, False)


def note(job, **facts):
    """Leave facts where the test finds them."""
    path = Path(job.store, f"{job.run_id}.{os.getpid()}.draft")
    path.write_text(json.dumps({"pid": os.getpid(), **facts}))
    path.rename(path.with_suffix(".json"))


def notes(folder):
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def fine(job):
    note(
        job,
        pgid=os.getpgrp(),
        sid=os.getsid(0),
        environment=dict(os.environ),
        device_index=job.device_index,
        cwd=str(Path.cwd()),
    )


def empty(job):
    return None


def raises(job):
    announce.phase("memory")
    raise ValueError("no such layer")


def sleeps(job):
    announce.phase("train")
    note(job)  # last: whoever sees it may kill this process
    time.sleep(600)


def with_grandchild(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(job, grandchild=child.pid)
    time.sleep(600)


def leaves_grandchild(job):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(job, grandchild=child.pid)


def segfault(job):
    ctypes.string_at(0)


def out_of_address_space(job):
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    bytearray(8 << 30)


def sleeps_shortly(job):
    begin = time.time()
    time.sleep(0.8)
    note(job, begin=begin, end=time.time())


def waits_its_turn(job):
    """Ordinary phase, then a timed one: more waiting than the time limit of a cell allows for work."""
    with quiet.busy(Path(job.store)):
        announce.phase("memory")
    with quiet.alone(Path(job.store)):
        announce.phase("time")
        begin = time.time()
        time.sleep(1.0)
        note(job, begin=begin, end=time.time())


def too_much_memory(job):
    """Join the cgroup that the test made, and touch more memory than it allows."""
    Path(os.environ["TEST_CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
    block = bytearray(512 << 20)
    note(job, survived=len(block))


def python(script, **environment):
    """What a script prints in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout


def entry(worker):
    """The name under which an executor finds a worker of this module."""
    return f"{__name__}:{worker}"


SUITE = """
[suite]
name = "small"
title = "cells for tests"
[profiles.cpu]
threads = 1
timeout_s = {timeout}
[profiles.gpu]
device = "cuda"
[defaults]
method = "bptt"
model = "convnet"
data = {{name = "shape", sample = [1, 4, 4], classes = 2}}
batch = 2
phases = "memory"
[[grid]]
name = "steps"
T = {steps}
"""


def suite_file(folder, steps=(2, 3, 4), timeout=20.0):
    """A suite of one cell for each number of steps; nothing in it is expensive, and other workers run it."""
    path = Path(folder, "small.toml")
    path.write_text(SUITE.format(steps=list(steps), timeout=timeout))
    return str(path)


def minimal_record(job, status="ok", **fields):
    """The smallest record that a store takes."""
    values = {
        "run_id": job.run_id,
        "cell": job.spec.hash,
        "suite": job.suite,
        "spec": job.spec,
        "created": datetime.now(UTC).isoformat(),
        "status": status,
        "phases": {"build": PhaseResult(status=status, seconds=1.0, reason=None if status == "ok" else "because")},
        "fingerprint": "0" * 16,
        "provenance": {"suite_sha256": job.suite_sha256},
    }
    return Record(**{**values, **fields})


def count(job):
    """Note that this cell is being measured, where a test can count it."""
    with Path(job.store).with_name("measured.txt").open("a") as log:
        log.write(f"{job.spec.T} {os.getppid()}\n")


def measured(store):
    """How often each cell was begun, by its number of steps."""
    log = Path(store).with_name("measured.txt")
    return Counter(int(line.split()[0]) for line in log.read_text().splitlines()) if log.exists() else Counter()


def records(job):
    count(job)
    Store(job.store).write(minimal_record(job))


def records_slowly(job):
    count(job)
    time.sleep(0.3)
    Store(job.store).write(minimal_record(job))


def fails_in_every_way(job):
    """By its steps: 2 raises, 3 is killed, 4 outlasts its limit, 5 diverges, 6 ends early, others are fine."""
    count(job)
    announce.phase("train")
    if job.spec.T == 2:
        raise ValueError("no such layer")
    if job.spec.T == 3:
        os.kill(os.getpid(), 9)
    if job.spec.T == 4:
        with_grandchild(job)
    if job.spec.T == 6:
        raise SystemExit(0)
    Store(job.store).write(minimal_record(job, "diverged" if job.spec.T == 5 else "ok"))


def hangs_after_first(job):
    """The cell that comes first is fine; the others sleep until they are killed, and so does what they started."""
    try:
        Path(job.store).with_name("first").touch(exist_ok=False)
    except FileExistsError:
        count(job)
        with_grandchild(job)
    records(job)


def cannot_write(job):
    raise SystemExit(NO_RECORD_EXIT_CODE)


def blocks_the_store(job):
    """Where the cell's record would go there is a file: neither the worker nor its parent can write it."""
    folder = Path(job.store, job.suite)
    folder.mkdir(exist_ok=True)
    (folder / job.spec.hash).write_text("in the way")


def outcome(job, **fields):
    """How a process ended that was killed."""
    values = {"exitcode": None, "signal": 9, "timed_out": False, "oom_killed": False, "seconds": 1.0}
    return Outcome(job, **{**values, **fields})
