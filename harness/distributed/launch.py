"""The parent of a cell's ranks: starts them with torchrun's launcher, and tells why one of them was lost.

The launcher's Python interface is used, not its command: the command puts every rank into a session of its own, where
the executor's limits on the cell's process group would not reach it.
"""

from __future__ import annotations

import os
import signal as signals
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import announce, partial
from harness.errors import UsageError
from harness.executors.cgroup import OomCounter
from harness.executors.job import NO_RECORD_EXIT_CODE, Job
from harness.record import WORST_FIRST, PhaseResult
from harness.store import Store
from harness.store.recordfile import DamagedRecordError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

NAME = "torch.distributed.launcher (torchrun), one process a device"
LOOPBACK = "127.0.0.1"
"""All ranks are on this machine; its name need not resolve."""
OTHERS_ENDED = signals.SIGTERM
"""What the launcher ends the remaining ranks with."""


def run(job: Job, entry: Any = None) -> None:
    """Run a cell's ranks to their end; the first one writes the record, or this process where they were lost.

    Args:
        job: the cell.
        entry: what each rank runs, picklable: takes the job as JSON, a folder for last words, and the channel of
            :mod:`harness.announce`; default: :func:`harness.distributed.rank.main`.

    Raises:
        SystemExit: with :data:`NO_RECORD_EXIT_CODE` when the record could not be written.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from harness.distributed import rank

    begin, oom = time.monotonic(), OomCounter()
    mark = oom.mark()
    with tempfile.TemporaryDirectory(prefix="snnbench-ranks-") as folder:
        try:
            elastic_launch(_config(job.spec.devices, folder), rank.main if entry is None else entry)(
                job.to_json(), folder, announce.channel()
            )
        except ChildFailedError as error:
            if any(failure.exitcode == NO_RECORD_EXIT_CODE for failure in error.failures.values()):
                raise SystemExit(NO_RECORD_EXIT_CODE) from error
            lost = diagnose(error.failures, last_words(Path(folder)), oom.struck(mark))
            _record(job, lost, time.monotonic() - begin)


def _config(devices: int, folder: str) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    if sys.platform == "linux":
        # gloo otherwise looks the machine's own name up (ProcessGroupGloo::createDefaultDevice)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,
        monitor_interval=0.1,
        start_method=start_method(),
        logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder, "logs"))),
    )


def start_method() -> str:
    """``fork`` in an executor's worker, which has imported everything and computed nothing, else ``spawn``.

    Two interpreters that import torch at the same time take seconds; a process that has computed has threads, and CUDA
    or autograd that a fork would break.
    """
    return "spawn" if announce.channel() is None else "fork"


@dataclass(frozen=True)
class Lost:
    """Why a cell's ranks ended early.

    Args:
        rank: the one that was first.
        outcome: of the phase it was in.
    """

    rank: int
    outcome: PhaseResult


def last_words(folder: Path) -> dict[int, PhaseResult]:
    """What ranks that gave up have left, by rank."""
    found = {}
    for file in sorted(folder.glob("rank-*.json")):
        found[int(file.stem.removeprefix("rank-"))] = PhaseResult.model_validate_json(file.read_text())
    return found


def diagnose(failures: Mapping[int, ProcessFailure], words: Mapping[int, PhaseResult], oom_killed: bool) -> Lost:
    """Which rank was lost first, and why: its loss makes the others' communication fail, which is no cause.

    Args:
        failures: processes that ended badly, by rank, those that the launcher ended included.
        words: of ranks that failed by an exception.
        oom_killed: whether the kernel's OOM killer struck meanwhile.
    """
    killed = {rank: -f.exitcode for rank, f in failures.items() if f.exitcode < 0 and -f.exitcode != OTHERS_ENDED}
    if killed:
        rank, number = min(killed.items())
        name = signals.Signals(number).name
        if oom_killed and number == signals.SIGKILL:
            return Lost(rank, PhaseResult(status="oom", reason=f"rank {rank}: ended by the kernel's OOM killer"))
        return Lost(rank, PhaseResult(status="killed", reason=f"rank {rank} was ended by {name}"))
    if words:
        rank = min(words, key=lambda rank: (WORST_FIRST.index(words[rank].status), rank))
        outcome = words[rank]
        return Lost(rank, outcome.model_copy(update={"reason": f"rank {rank}: {outcome.reason}"}))
    rank, failure = min(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    reason = f"rank {rank} ended with exit code {failure.exitcode}"
    return Lost(rank, PhaseResult(status="error", reason=reason, traceback=str(failure.message) or None))


def _record(job: Job, lost: Lost, seconds: float) -> None:
    from harness import worker

    done = partial.peek(job).get("phases", {})
    phase = next((name for name in ("build", *job.spec.phases) if name not in done), job.spec.phases[-1])
    outcome = lost.outcome
    record = worker.failed_record(job, outcome.status, outcome.reason or "", phase, seconds)
    record.phases[phase].traceback, record.phases[phase].bytes_requested = outcome.traceback, outcome.bytes_requested
    try:
        Store(job.store).write(record)
    except (OSError, UsageError, DamagedRecordError) as error:
        print(f"{job.spec.label()}: the record could not be written: {error}", file=sys.stderr)
        raise SystemExit(NO_RECORD_EXIT_CODE) from error
