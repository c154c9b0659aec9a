"""``snnbench bench``: a suite made of one model of the user's, measured like any other."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from harness import registry
from harness.build import make_loss
from harness.contracts import Loss, Method, StagedModel
from harness.errors import UsageError
from harness.plan import adopting, loading
from harness.plan.candidates import BASELINE, chosen
from harness.plan.size import show_size
from harness.record import Memory, Record
from harness.run.session import RunResult, reason, run
from harness.run.todo import RunOptions
from harness.spec import LossSpec, Ref
from harness.store import Store
from harness.store.disk import write_atomic

COLUMNS = (
    "method", "gradient", "peak", "of BPTT's", "activations", "of BPTT's", "step time", "against", "gradient error",
    "remarks",
)  # fmt: skip
NONE = "-"
FOLDER = ".bench"
"""Folder of a store for the suites that were made here."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Args:
        factory: ``module:factory``.
        input: ``(T, N, ...)``.
        store: folder of the records.
        classes: number of classes, or None: the model's output tells.
        methods: words of :func:`harness.plan.candidates.chosen`; empty: all.
        stages: globs of module names that are stages.
        device: ``cpu`` or ``cuda``.
        precision: as in a cell.
        loss: as in a cell; a model that gives ``[N, K]`` has ``time_mean``.
        timeout_s: of one method.
        jobs: CPU cells at the same time.
    """

    factory: str
    input: tuple[int, ...]
    store: Path
    classes: int | None = None
    methods: tuple[str, ...] = ()
    stages: str | None = None
    device: str = "cpu"
    precision: str = "fp32"
    loss: str = "per_step"
    timeout_s: float = 600.0
    jobs: int = 1


@dataclass(frozen=True)
class Measured:
    """What a bench found.

    Args:
        suite: name of the suite that holds the records.
        store: folder of the records.
        notes: on the model.
        records: the latest of every method, in the order of the methods.
        result: how the run ended.
    """

    suite: str
    store: Path
    notes: tuple[str, ...]
    records: Sequence[Record]
    result: RunResult
    absent: tuple[str, ...] = field(default=())

    def table(self) -> list[list[str]]:
        """Cells of :data:`COLUMNS`; what was measured first, by peak."""
        base = next((record for record in self.records if record.spec.method.name == BASELINE), None)
        return [_cells(record, base) for record in sorted(self.records, key=_rank) if record.memory is not None]

    def left_out(self) -> list[str]:
        """Methods without memory, by reason."""
        reasons: dict[str, list[str]] = {}
        for record in self.records:
            if record.memory is None:
                why = f"{record.status}: {_why(record)}"
                reasons.setdefault(why, []).append(registry.short_label("methods", record.spec.method))
        return [f"left out: {', '.join(labels)}: {why}" for why, labels in reasons.items()]


def bench(request: Request, console: Console) -> Measured:
    """Measure memory, paired time and fidelity of every method on the user's model; every method in its own process.

    Raises:
        UsageError: the model cannot be loaded or run, or an option is wrong.
        StoppedError: the user stopped it.
    """
    loading.import_here()
    refs = chosen(request.methods, None)
    refs = refs if any(ref.name == BASELINE for ref in refs) else [*chosen([BASELINE], None), *refs]
    request, model, decision, plain = _prepare(request, refs)
    name = _suite_name(request.factory)
    file = request.store / FOLDER / f"{name}.toml"
    text = suite_text(name, request, model, refs, plain)
    Store(request.store).check_writable()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda draft: draft.write_text(text))
    options = RunOptions(
        str(file), request.store, request.device, jobs=request.jobs, fresh=True, timeout_s=request.timeout_s
    )
    result = run(options, console)
    return Measured(name, request.store, decision.notes, _records(request, name, model, refs), result)


def _prepare(request: Request, methods: Sequence[Ref]) -> tuple[Request, Ref, adopting.Decision, frozenset[str]]:
    """The model's reference, after it was tried once here: a mistake in it is one error, not one a method.

    Also the labels of methods whose own baseline cannot train it: they are timed against plain BPTT.
    """
    steps, _, *sample = request.input
    torch.manual_seed(0)
    model = loading.load(request.factory)
    version = loading.fingerprint(request.factory, model)
    decision = adopting.decide(model, tuple(sample), steps, request.stages)
    if request.classes not in (None, decision.classes):
        raise UsageError(f"--classes {request.classes}: the model's output has {decision.classes}")
    options = {"factory": request.factory, "T": steps, "stages": request.stages, "version": version}
    ref = registry.complete("models", "user", options, request.factory)
    loss = "time_mean" if decision.time_mean else request.loss
    staged = adopting.adopt(model, decision, request.stages).model
    objective = make_loss(LossSpec.model_validate({"kind": loss}))
    plain = frozenset(one.label for one in methods if _baseless(one, staged, objective))
    return replace(request, classes=decision.classes, loss=loss), ref, decision, plain


def _baseless(method: Ref, model: StagedModel, loss: Loss) -> bool:
    """Whether a method's own baseline, other than plain BPTT, cannot train the model."""
    baseline: str = registry.plugin("methods", method.name).baseline
    if baseline in (BASELINE, method.name):
        return False
    found: Method = registry.create("methods", registry.complete("methods", baseline, {}, "baseline"))
    return found.supports(model, loss) is not None


def suite_text(
    name: str, request: Request, model: Ref, methods: Sequence[Ref], plain: frozenset[str] = frozenset()
) -> str:
    """The suite as TOML.

    Args:
        name: of the suite.
        request: what to measure.
        model: the model's reference.
        methods: what trains it.
        plain: labels of those that are timed against plain BPTT, whatever their own baseline.
    """
    steps, batch, *sample = request.input
    data = {"name": "shape", "sample": sample, "classes": request.classes, "n_train": batch, "n_test": 1}
    grid = {
        "name": "bench",
        "model": {"name": model.name, **model.options},
        "data": data,
        "T": steps,
        "batch": batch,
        "loss": request.loss,
        "precision": request.precision,
        "phases": ["fidelity", "memory", "time"],
    }
    profile = {"description": "a model of the user's own, on noise", "device": request.device}
    lines = [
        "[suite]", f"name = {_toml(name)}", f"title = {_toml(f'{request.factory}, measured on noise')}",
        f"[profiles.{request.device}]", *(f"{key} = {_toml(value)}" for key, value in profile.items()),
    ]  # fmt: skip
    for against in (None, BASELINE):
        rows = [{"name": ref.name, **ref.options} for ref in methods if (ref.label in plain) == (against is not None)]
        own = {"method": rows} if against is None else {"name": "bench-plain", "method": rows, "baseline": against}
        if rows:
            lines += ["[[grid]]", *(f"{key} = {_toml(value)}" for key, value in (grid | own).items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A value as TOML; None has no word there, and options that are None are defaults."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{ " + inside + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _suite_name(factory: str) -> str:
    return "bench-" + re.sub(r"[^A-Za-z0-9._-]+", "-", factory).strip("-")


def _records(request: Request, suite: str, model: Ref, methods: Sequence[Ref]) -> list[Record]:
    """The latest record of each method in this setting."""
    steps, batch, *_ = request.input
    latest: dict[str, Record] = {}
    for _, record in Store(request.store).records(suite):
        spec = record.spec
        if (spec.model, spec.T, spec.batch, spec.device, spec.precision) != (
            model, steps, batch, request.device, request.precision,
        ):  # fmt: skip
            continue
        before = latest.get(spec.method.label)
        if before is None or record.run_id > before.run_id:
            latest[spec.method.label] = record
    return [latest[ref.label] for ref in methods if ref.label in latest]


def _rank(record: Record) -> tuple[int, str]:
    peak = record.memory.peak_live_bytes if record.memory else None
    return (sys.maxsize if peak is None else peak), record.spec.method.label


def _why(record: Record) -> str:
    """Why a method has no memory block."""
    return reason(record) or "no memory was measured"


def _cells(record: Record, base: Record | None) -> list[str]:
    memory, timing, fidelity = record.memory, record.timing, next(iter(record.fidelity), None)
    reference = base.memory if base is not None else None
    facts, remarks = record.method, list[str]()
    kind = facts["gradient"] if facts["model"] == "same" else f"{facts['gradient']}, changed model"
    if memory is not None and memory.peak_live_bytes is None:
        remarks.append(memory.reasons["peak_live_bytes"])
    if facts["model"] != "same":
        remarks.append(facts["model"])
    if record.status != "ok":
        remarks.append(f"{record.status}: {reason(record)}")
    if timing is not None and timing.verdict != "stable":
        remarks.append(f"time {timing.verdict}")
    return [
        registry.short_label("methods", record.spec.method),
        kind,
        *_bytes(memory, reference, "peak_live_bytes"),
        *_bytes(memory, reference, "peak_activation_bytes"),
        f"{timing.ratio:.2f}" if timing is not None and timing.ratio is not None else NONE,
        (timing.baseline if timing.ratio is not None else "(baseline)") if timing is not None else NONE,
        f"{fidelity.relative_l2:.1e}" if fidelity is not None else NONE,
        "; ".join(remarks),
    ]


def _bytes(memory: Memory | None, reference: Memory | None, name: str) -> tuple[str, str]:
    value: int | None = getattr(memory, name, None)
    base: int | None = getattr(reference, name, None)
    if value is None:
        return NONE, NONE
    return show_size(value), f"{value / base:.2f}" if base else NONE
