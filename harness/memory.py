"""Memory phase: one settled training step under the ledger, and beside it what allocators and the process say.

Measured and predicted cells take the same path; a prediction runs it on fake tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import cuda
from harness.build import Bench, Trainer, build_method
from harness.contracts import reset_states
from harness.devices import allocator
from harness.distributed.ranks import Ranks
from harness.host import HostPeak
from harness.ledger import Ledger, LedgerReport
from harness.record import Memory, ModuleBytes, RankMemory, Split
from harness.store.series import thin

TIMELINE_POINTS = 1_000
"""Points of the timeline that stay in the record; the whole one goes into the series file."""
COUNTED = ("peak_live_bytes", "split", "peak_activation_bytes", "saved_bytes", "static_bytes")
"""Fields that the ledger alone can fill."""
SETTLING_STEPS = 1
"""Steps before the tracked one: after it the optimizer's state exists."""


def measure(
    bench: Bench, plan: dict[str, object] | None = None, snapshot: Path | None = None
) -> tuple[Memory, LedgerReport | None, Trainer]:
    """The memory block of a cell.

    Args:
        bench: the cell; its batch may be fake.
        plan: a real run's decisions for the method to replay.
        snapshot: where a snapshot of the CUDA allocator over one more step goes; None: no snapshot.

    Returns:
        The block, the ledger's whole report (None for a method that it cannot count), and the trainer (whose method
        tells its plan).
    """
    spec = bench.spec
    method = build_method(spec)
    if plan is not None:
        method.replay(plan)
    begin = time.perf_counter()
    trainer = bench.trainer(method)
    plan_seconds = time.perf_counter() - begin
    report = track(trainer, bench) if method.ledger is None else None
    if report is None and not spec.predicted:
        _settle(trainer, bench)
    peaks, host = _untracked(trainer, bench)
    reasons = {name: why for name, why in peaks.reasons.items() if name in cuda.NAMES}
    if report is None:
        reasons |= dict.fromkeys(COUNTED, str(method.ledger))
    elif report.saved_bytes is None:
        reasons["saved_bytes"] = "the step ran no backward"
    if host.bytes is None:
        reasons["host_peak_bytes"] = host.reason or "not measured"
    block = _block(report, peaks, host, spec.device, plan_seconds, reasons)
    if spec.device == "cuda":
        block.cuda_facts = _cuda_facts(report, peaks)
        if snapshot is not None and not spec.predicted:
            snapshot = snapshot if bench.ranks.first else snapshot.with_suffix(f".rank{bench.ranks.rank}.pickle")
            with cuda.snapshot(snapshot):
                trainer.step(*bench.batch)
            block.cuda_facts["snapshot"] = snapshot.name
    return _highest(block, bench.ranks), report, trainer


def _highest(block: Memory, ranks: Ranks) -> Memory:
    """The block of the rank with the highest peak, with what every rank held."""
    if ranks.size == 1:
        return block
    every = ranks.gather(block)
    names = [name for name in RankMemory.model_fields if name != "rank"]
    held = [RankMemory(rank=rank, **{name: getattr(one, name) for name in names}) for rank, one in enumerate(every)]
    found = max(every, key=lambda one: (one.peak_live_bytes or 0, one.cuda_allocated_bytes or 0))
    process = [name for name in names if name.startswith(("host", "cuda", "nvml"))]
    highest = {
        name: max((getattr(one, name) for one in held if getattr(one, name) is not None), default=None)
        for name in process
    }
    return found.model_copy(update={"ranks": held, **highest})


def track(trainer: Trainer, bench: Bench, settle: Callable[[Trainer, Bench], None] | None = None) -> LedgerReport:
    """The ledger's report of one settled training step.

    Args:
        trainer: fresh.
        bench: the cell.
        settle: brings the optimizer's state about; default: real steps.
    """
    x, y = bench.batch
    (settle or _settle)(trainer, bench)
    gc.collect()
    ledger = Ledger(trainer.model, bench.spec.device)
    ledger.register("inputs", [x, y])
    ledger.register_optimizer(trainer.optimizer)
    trainer.loss.on_logits = ledger.mark_output
    # Membranes of the settling step would be freed inside the tracked one.
    reset_states(trainer.model)
    try:
        with ledger:
            trainer.step(x, y)
    finally:
        trainer.loss.on_logits = None
    return ledger.report()


def _settle(trainer: Trainer, bench: Bench) -> None:
    for _ in range(SETTLING_STEPS):
        trainer.step(*bench.batch)


def _untracked(trainer: Trainer, bench: Bench) -> tuple[cuda.CudaPeaks, HostPeak]:
    """One more step without the ledger, for the allocator and the process."""
    host = HostPeak()
    if bench.spec.predicted:
        host.reason = "predicted: nothing ran"
        return cuda.CudaPeaks(reasons=dict.fromkeys(cuda.NAMES, "predicted: nothing ran")), host
    gc.collect()
    with cuda.peaks(bench.spec.device) as peaks, host:
        trainer.step(*bench.batch)
    return peaks, host


def _block(
    report: LedgerReport | None,
    peaks: cuda.CudaPeaks,
    host: HostPeak,
    device: str,
    plan_seconds: float,
    reasons: dict[str, str],
) -> Memory:
    return Memory(
        **_counted(report),
        host_peak_bytes=host.bytes,
        cuda_allocated_bytes=peaks.allocated,
        cuda_reserved_bytes=peaks.reserved,
        cuda_requested_bytes=peaks.requested,
        nvml_process_bytes=peaks.process,
        kernel_path=cuda.kernel_path(device),
        plan_seconds=plan_seconds,
        reasons=reasons,
    )


def _cuda_facts(report: LedgerReport | None, peaks: cuda.CudaPeaks) -> dict[str, Any]:
    """What stands between the ledger's peak and the allocator's: cuts that the allocator leaves, and workspaces."""
    facts: dict[str, Any] = {
        "workspace_bytes": peaks.workspace, "nvml_device_bytes": peaks.device,
        "nvml_device_delta_bytes": peaks.device_delta,
        "nvml_device_reason": peaks.reasons.get("nvml_device_delta_bytes"),
    }  # fmt: skip
    if report is not None:
        model = allocator.replay(report.lives)
        facts |= {"modelled_allocated_bytes": model.peak_allocated, "modelled_reserved_bytes": model.peak_reserved}
    return {name: value for name, value in facts.items() if value is not None}


def _counted(report: LedgerReport | None) -> dict[str, Any]:
    if report is None:
        return dict.fromkeys(COUNTED) | {"by_module": [], "timeline": [], "events": 0}
    return {
        "peak_live_bytes": report.peak_bytes,
        "split": Split(**report.split),
        "peak_activation_bytes": report.activation_bytes,
        "saved_bytes": report.saved_bytes,
        "static_bytes": report.static_bytes,
        "by_module": [ModuleBytes(module=m, origin=o, bytes=b) for m, o, b in report.by_module],
        "timeline": thin(list(enumerate(report.timeline)), TIMELINE_POINTS),
        "events": len(report.timeline),
    }
