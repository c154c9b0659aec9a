"""One cell in a process of its own: build, measure phase by phase, write the record.

A phase that fails leaves its error in the record and the others' results intact.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness import announce, cuda, fidelity, memory, ops, partial, predict, quiet, registry, timing, training
from harness.build import Bench, Trainer, build_method, data_source, open_bench
from harness.contracts import Unavailable
from harness.distributed import launch, norm
from harness.distributed import ranks as processes
from harness.distributed.ranks import ALONE, Ranks
from harness.errors import UsageError
from harness.executors.job import NO_RECORD_EXIT_CODE, Job
from harness.failure import classify
from harness.provenance import collect, fingerprint
from harness.provenance.code import source_hash
from harness.record import WORST_FIRST, Distributed, PhaseResult, Record, Status, overall
from harness.spec import CellSpec
from harness.store import Store
from harness.store.recordfile import DamagedRecordError


@dataclass
class Result:
    """What the phases have found so far.

    Args:
        job: the cell and where its record goes.
        ranks: the processes that share the cell.
        phases: how each phase ended.
        fields: blocks and facts of the record.
        series: long series, kept beside the record.
    """

    job: Job
    ranks: Ranks = ALONE
    phases: dict[str, PhaseResult] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=lambda: {"data": {}, "fidelity": []})
    series: dict[str, list[Any]] = field(default_factory=dict)

    def save(self) -> None:
        """Keep what there is, in case this process dies in the next phase."""
        if self.ranks.first:
            partial.save(self.job, {"phases": self.phases, **self.fields})


def preload() -> None:
    """Import every plugin and hash the code as it is now, so that a fork server's children need not."""
    for kind in registry.GROUPS:
        registry.entries(kind)
    source_hash()


def run_cell(job: Job) -> None:
    """Measure ``job``'s cell and write its record; a cell of several devices in a process for each.

    Raises:
        SystemExit: with :data:`NO_RECORD_EXIT_CODE` when the record could not be written.
    """
    if job.spec.devices > 1 and _devices(job.spec) >= job.spec.devices:
        launch.run(job)
    else:
        measure(job)


def measure(job: Job, ranks: Ranks = ALONE) -> None:
    """Measure ``job``'s cell in this process and write its record.

    Args:
        job: the cell.
        ranks: the processes that share it; only the first one writes.

    Raises:
        SystemExit: with :data:`NO_RECORD_EXIT_CODE` when the record could not be written.
        LostRanksError: a phase failed here that other ranks are still in.
    """
    _settle(job, ranks)
    result, bench = Result(job, ranks), None
    with _phase(result, "build"):
        bench = _build(result)
    if job.spec.predicted and result.phases["build"].status == "ok":
        _predict(result)
    elif bench is not None:
        _measure(bench, result)
    if not ranks.first:
        return
    try:
        Store(job.store).write(_record(result), result.series)
    except (OSError, UsageError, DamagedRecordError) as error:
        print(f"{job.spec.label()}: the record could not be written: {error}", file=sys.stderr)
        raise SystemExit(NO_RECORD_EXIT_CODE) from error
    partial.discard(job)


def _devices(spec: CellSpec) -> int:
    """How many devices a cell finds here; on a CPU as many as it asks for."""
    return torch.cuda.device_count() if spec.device == "cuda" else spec.devices


def _settle(job: Job, ranks: Ranks) -> None:
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.benchmark = False
    if job.spec.device == "cuda":
        if not torch.cuda.is_available():
            return
        if ranks.first:
            cuda.before_context()
        torch.cuda.set_device(ranks.rank)


def _build(result: Result) -> Bench | None:
    """Method, data and model; None for a predicted cell, which needs no data."""
    spec, fields = result.job.spec, result.fields
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("this cell asks for CUDA, and torch sees none", "run the cpu profile, or on a GPU machine")
    if _devices(spec) < spec.devices:
        remedy = "run cells of fewer devices, or on a larger machine"
        raise Unavailable(f"this cell asks for {spec.devices} CUDA devices, and torch sees {_devices(spec)}", remedy)
    method = build_method(spec)
    fields["method"] = {
        "gradient": method.gradient, "model": method.model, "numerics": method.numerics,
        "paper": method.paper, "reconstruction": method.reconstruction,
    }  # fmt: skip
    info = data_source(spec).info()
    fields["data"] = {
        "sample": list(info.sample), "classes": info.classes, "source": info.source, "variant": info.variant,
    }  # fmt: skip
    if spec.predicted:
        return None
    bench, facts = open_bench(spec, result.ranks)
    fields["data"] |= facts
    if bench.splits is None and "train" in spec.phases:
        result.phases["train"] = PhaseResult(status="unavailable", reason=facts["reason"])
    # supports() is asked once, before any phase: an unsupported cell has no other result.
    fields["normalisation"] = bench.trainer().model.normalisation
    fields["parameters"] = sum(p.numel() for p in bench.plain().parameters())
    if bench.ranks.size > 1:
        _share(bench, result)
    return bench


def _predict(result: Result) -> None:
    with _phase(result, "memory"):
        _keep_memory(result, *predict.predict(result.job.spec))
    for phase in result.job.spec.phases:
        if phase != "memory":
            reason = "a predicted cell has only the memory phase"
            result.phases[phase] = PhaseResult(status="unsupported", reason=reason)


def _measure(bench: Bench, result: Result) -> None:
    for name in bench.spec.phases:
        if name not in result.phases:
            gc.collect()
            result.save()
            with cuda.phase_peaks(bench.spec.device) as peaks, _phase(result, name), _company(bench, name):
                bench.ranks.meet()
                _PHASES[name](bench, result)
            result.phases[name].cuda_peaks = peaks


def _company(bench: Bench, phase: str) -> contextlib.AbstractContextManager[None]:
    """On a CPU timed phases run with nothing beside them but their own ranks."""
    if bench.spec.device != "cpu" or not bench.ranks.first:
        return contextlib.nullcontext()
    return quiet.alone() if phase == "time" else quiet.busy()


def _fidelity(bench: Bench, result: Result) -> None:
    result.fields["fidelity"].append(fidelity.measure(bench, "initial"))
    if bench.ranks.size > 1:
        _share(bench, result, one_process_l2=fidelity.against_one_process(bench))


def _memory(bench: Bench, result: Result) -> None:
    job = result.job
    beside = Path(job.store) / job.suite / job.spec.hash / f"{job.run_id}.snapshot.pickle"
    block, report, trainer = memory.measure(bench, snapshot=beside if job.snapshot else None)
    _keep_memory(result, block, report, trainer)
    if bench.ranks.size > 1:
        found, reason = norm.synchronised(trainer.model)
        _share(bench, result, sync_batchnorm=found, reason=reason)


def _share(bench: Bench, result: Result, reason: str = "", **found: Any) -> None:
    """Note how the ranks work together: what is known before any phase, and what one has found."""
    block: Distributed = result.fields.get("distributed") or Distributed(
        devices=bench.ranks.size,
        rank_batch=len(bench.batch[1]),
        launcher=launch.NAME,
        backend=processes.backend(bench.spec.device),
        gradient_sync=processes.GRADIENT_SYNC,
        bucket_bytes=processes.BUCKET_BYTES,
        one_process_l2=None,
        sync_batchnorm=None,
        reasons={"one_process_l2": "no fidelity phase", "sync_batchnorm": "no memory phase"},
    )
    reasons = {name: reason if name in found else why for name, why in block.reasons.items()}
    reasons = {name: why for name, why in reasons.items() if name not in found or found[name] is None}
    result.fields["distributed"] = block.model_copy(update={**found, "reasons": reasons})


def _keep_memory(result: Result, block: Any, report: Any, trainer: Trainer) -> None:
    result.fields["memory"] = block
    result.fields["plan"] = trainer.method.plan()
    if report is not None:
        result.series["timeline"] = list(enumerate(report.timeline))
    result.fields.setdefault("normalisation", trainer.model.normalisation)


def _time(bench: Bench, result: Result) -> None:
    result.fields["timing"] = timing.measure(bench, strict=result.job.strict)


def _ops(bench: Bench, result: Result) -> None:
    if bench.ranks.first:
        # arithmetic does not depend on the number of devices: one rank counts the whole batch's
        whole = bench.batch if bench.whole is None else bench.whole()
        result.fields["ops"] = ops.measure(replace(bench, batch=whole, ranks=ALONE))


def _train(bench: Bench, result: Result) -> None:
    try:
        result.fields["training"], trainer = training.measure(bench)
    except training.DivergedError as error:
        result.fields["training"] = error.block
        raise
    if "fidelity" in bench.spec.phases:
        result.fields["fidelity"].append(fidelity.measure(bench, "trained", trainer))


_PHASES: dict[str, Callable[[Bench, Result], None]] = {
    "fidelity": _fidelity, "memory": _memory, "time": _time, "ops": _ops, "train": _train,
}  # fmt: skip


@contextlib.contextmanager
def _phase(result: Result, name: str) -> Iterator[None]:
    """Run a phase; whatever goes wrong in it becomes its status."""
    announce.phase(name)
    begin = time.perf_counter()
    outcome = PhaseResult(status="ok")
    try:
        yield
    except Exception as error:
        outcome = classify(error)
    outcome.seconds = time.perf_counter() - begin
    result.phases[name] = _everywhere(result.ranks, name, outcome)


def _everywhere(ranks: Ranks, name: str, outcome: PhaseResult) -> PhaseResult:
    """How a phase ended on all ranks: the worst of theirs, with its rank where they differ."""
    if ranks.size == 1:
        return outcome
    every = ranks.end(name, outcome.model_dump_json(), outcome.status != "ok")
    found = [PhaseResult.model_validate_json(text) for text in every]
    worst = min(range(len(found)), key=lambda rank: WORST_FIRST.index(found[rank].status))
    if len({each.status for each in found}) > 1:
        found[worst].reason = f"rank {worst}: {found[worst].reason}"
    return found[worst]


def _record(result: Result) -> Record:
    job = result.job
    facts = collect(job.spec.device, job.threads) | {
        "suite_sha256": job.suite_sha256, "seed": job.spec.seed, "data_sha256": result.fields["data"].get("sha256"),
    }  # fmt: skip
    return Record(
        run_id=job.run_id,
        cell=job.spec.hash,
        suite=job.suite,
        spec=job.spec,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status=overall(result.phases),
        phases=result.phases,
        fingerprint=fingerprint(facts),
        provenance=facts,
        **result.fields,
    )


def failed_record(job: Job, status: Status, reason: str, phase: str, seconds: float) -> Record:
    """The record of a cell whose process died without writing one, with the phases that it had finished.

    Args:
        job: the cell.
        status: how it ended.
        reason: in one line.
        phase: the phase it died in.
        seconds: wall time of the process.
    """
    result = Result(job)
    found = partial.take(job)
    earlier = {name: PhaseResult.model_validate(ended) for name, ended in found.pop("phases", {}).items()}
    result.fields |= found
    spent = sum(ended.seconds or 0.0 for ended in earlier.values())
    result.phases = earlier | {phase: PhaseResult(status=status, reason=reason, seconds=max(0.0, seconds - spent))}
    return _record(result)
