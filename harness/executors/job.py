"""What an executor is given and what it gives back: a job is one cell to run, an outcome how its process ended."""

from __future__ import annotations

import json
import signal as signals
from dataclasses import dataclass
from typing import Any

from harness.record import Status
from harness.spec import CellSpec

NO_RECORD_EXIT_CODE = 75
"""A worker's exit code when it could not write its record (``EX_TEMPFAIL`` of sysexits.h)."""


@dataclass(frozen=True)
class Job:
    """One cell to run.

    Args:
        spec: what to measure.
        suite: name of the suite that the cell belongs to.
        suite_sha256: hash of the suite file's text.
        store: root folder of the store.
        run_id: file name of the record to write.
        timeout_s: hard limit on the wall time of the cell's process, in seconds.
        threads: intra-op threads of the worker.
        device_index: position of the CUDA device in the parent's own list; None on a CPU.
        strict: refuse to time on a disturbed machine.
        snapshot: write a CUDA allocator snapshot beside the record.
    """

    spec: CellSpec
    suite: str
    suite_sha256: str
    store: str
    run_id: str
    timeout_s: float
    threads: int
    device_index: int | None
    strict: bool
    snapshot: bool = False

    def to_json(self) -> str:
        """The job as text, for a command line or a file."""
        fields: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "spec"}
        return json.dumps({"spec": self.spec.model_dump(mode="json"), **fields})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no JSON or the spec is not valid.
            TypeError: a field is missing or unknown.
        """
        fields = json.loads(text)
        return cls(spec=CellSpec.model_validate(fields.pop("spec")), **fields)


@dataclass(frozen=True)
class Outcome:
    """How a job's process ended; what it measured is in the store.

    Args:
        job: the job, with the device it ran on.
        exitcode: exit code, or None when a signal ended the process.
        signal: number of the signal that ended it, or None.
        timed_out: the executor killed it at its deadline.
        oom_killed: the kernel's OOM killer ended it.
        seconds: wall time of the process.
        phase: the last phase that the worker announced.
        log: the end of what it wrote to stdout and stderr.
    """

    job: Job
    exitcode: int | None
    signal: int | None
    timed_out: bool
    oom_killed: bool
    seconds: float
    phase: str = "build"
    log: str = ""

    @property
    def status(self) -> Status:
        """Status of a record for a process that left none."""
        if self.timed_out:
            return "timeout"
        if self.oom_killed:
            return "oom"
        return "killed" if self.signal is not None else "error"

    @property
    def reason(self) -> str:
        """Why the process left no record, in one line."""
        if self.timed_out:
            return f"killed at the limit of {self.job.timeout_s:g} s"
        if self.oom_killed:
            return "the kernel's OOM killer ended the worker: the host ran out of memory"
        if self.signal is not None:
            return f"the worker was ended by {signals.Signals(self.signal).name}"
        if self.exitcode == NO_RECORD_EXIT_CODE:
            return "the worker could not write its record"
        return f"the worker ended with exit code {self.exitcode} and left no record"
