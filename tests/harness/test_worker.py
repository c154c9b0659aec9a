"""The worker: real cells through every phase, and what each kind of failure leaves behind."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import failure, partial, quiet, registry, worker
from harness.contracts import DataSplits, Loss, Method, StagedModel, StepOutput, Unavailable
from harness.executors.job import NO_RECORD_EXIT_CODE, Job
from harness.record import Record
from harness.spec import PHASES, CellSpec, Ref
from harness.store import Store, new_run_id
from tests.harness.benches import make_spec
from tests.harness.test_training import digits


def run(spec: CellSpec, store: Path) -> Record:
    worker.run_cell(Job(spec, "s", "0" * 64, str(store), new_run_id(), 60.0, 1, None, False))
    (stored,) = [item for item in Store(store).records() if item.record.cell == spec.hash]
    return stored.record


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed phases of other tests' workers must not make these wait."""
    monkeypatch.setattr(quiet.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Method]], Ref]:
    """Registers a method for one test."""
    entries = dict(registry.entries("methods"))
    real = registry.entries
    monkeypatch.setattr(registry, "entries", lambda kind: entries if kind == "methods" else real(kind))

    def put(plugin: type[Method]) -> Ref:
        entries["broken"] = registry.Entry("broken", "methods", "tests", "tests", plugin, None)
        return Ref(name="broken")

    return put


class Broken(Method):
    """BPTT until something is told to go wrong."""

    name, summary, paper, gradient = "broken", "-", "-", "exact"

    def step(self, model: StagedModel, x: Tensor, y: Tensor, loss: Loss, update: Callable[[], None]) -> StepOutput:
        logits = model(x)
        value = loss(logits, y)
        loss.backward(value)
        self.spoil(model, value)
        update()
        return StepOutput(value.detach(), logits.detach().mean(0))

    def spoil(self, model: StagedModel, value: Tensor) -> None:
        """What goes wrong."""


def test_all_phases_of_a_real_cell(tmp_path: Path) -> None:
    spec = digits("checkpoint-compress", epochs=1)[1].model_copy(update={"phases": PHASES})
    record = run(spec, tmp_path)
    assert record.status == "ok", record.phases
    assert set(record.phases) == {"build", *PHASES}
    assert [f.at for f in record.fidelity] == ["initial", "trained"]
    assert all(f.exact for f in record.fidelity)
    assert record.memory is not None
    assert record.memory.split is not None
    assert sum(record.memory.split.model_dump().values()) == record.memory.peak_live_bytes
    assert record.timing is not None
    assert record.timing.paired
    assert record.ops is not None
    assert record.ops.synops
    assert record.training is not None
    assert record.plan["widths"]
    assert record.data["sha256"]
    assert record.data["synthetic"] is False
    assert record.provenance["seed"] == 0
    assert record.method["gradient"] == "exact"
    series = Store(tmp_path).series(next(tmp_path.rglob("*.json")))
    assert len(series["timeline"]) == record.memory.events
    assert len(record.memory.timeline) <= 1000
    assert max(b for _, b in record.memory.timeline) == record.memory.peak_live_bytes


def test_a_predicted_cell(tmp_path: Path) -> None:
    spec = make_spec("checkpoint", predicted=True)
    record = run(spec, tmp_path)
    assert record.status == "ok"
    measured = run(make_spec("checkpoint"), tmp_path)
    assert record.memory is not None
    assert measured.memory is not None
    assert record.memory.peak_live_bytes == measured.memory.peak_live_bytes


def test_unsupported_says_why(tmp_path: Path) -> None:
    record = run(make_spec("sltt", net={"norm": "over_time"}, phases=("fidelity", "memory")), tmp_path)
    assert record.status == "unsupported"
    assert "per_step" in (record.phases["build"].reason or "")
    assert record.memory is None


def test_one_failing_phase_leaves_the_others(tmp_path: Path, broken: Any) -> None:
    class FailsWhenTraining(Broken):
        steps = 0

        def spoil(self, model: StagedModel, value: Tensor) -> None:
            type(self).steps += 1
            if type(self).steps > 5:
                raise ValueError("no more")

    base = digits(epochs=2)[1]
    spec = base.model_copy(update={"method": broken(FailsWhenTraining), "phases": ("fidelity", "memory", "train")})
    record = run(spec, tmp_path)
    assert record.status == "error"
    assert record.phases["fidelity"].status == record.phases["memory"].status == "ok"
    assert record.phases["train"].reason == "ValueError: no more"
    assert "spoil" in (record.phases["train"].traceback or "")
    assert record.memory is not None


def test_divergence_is_a_status(tmp_path: Path, broken: Any) -> None:
    class Explodes(Broken):
        def spoil(self, model: StagedModel, value: Tensor) -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))

    spec = digits(epochs=2)[1].model_copy(update={"method": broken(Explodes), "phases": ("train",)})
    record = run(spec, tmp_path)
    assert record.status == "diverged"
    assert record.training is not None
    assert record.training.final_test_accuracy is None


def test_the_allocators_own_error_is_oom_with_its_bytes(tmp_path: Path, broken: Any) -> None:
    class Hungry(Broken):
        def spoil(self, model: StagedModel, value: Tensor) -> None:
            torch.empty(1 << 40, dtype=torch.uint8)

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 38, before[1]))
    try:
        record = run(make_spec(phases=("memory",)).model_copy(update={"method": broken(Hungry)}), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert record.status == "oom"
    assert record.phases["memory"].bytes_requested == 1 << 40


@pytest.mark.parametrize(
    ("text", "requested"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...", 1610612736),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU", 20971520),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12", 4096),
        ("something else", None),
    ],
)
def test_bytes_of_an_oom_message(text: str, requested: int | None) -> None:
    assert failure.requested(text) == requested


def test_missing_data_still_gives_bytes_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = digits()[1].model_copy(update={"phases": ("fidelity", "memory", "train")})

    def gone(self: Any, steps: int) -> DataSplits:
        raise Unavailable("no digits", "put them there")

    monkeypatch.setattr(registry.plugin("datasets", "digits"), "load", gone)
    record = run(spec, tmp_path)
    assert record.status == "unavailable"
    assert record.phases["train"].status == "unavailable"
    assert "put them there" in (record.phases["train"].reason or "")
    assert record.phases["memory"].status == "ok"
    assert record.data["synthetic"] is True


def test_cuda_cell_on_a_machine_without(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    record = run(make_spec(device="cuda"), tmp_path)
    assert record.status == "unavailable"
    assert "CUDA" in (record.phases["build"].reason or "")


def test_a_record_for_a_process_that_died(tmp_path: Path) -> None:
    job = Job(make_spec(), "s", "0" * 64, str(tmp_path), new_run_id(), 5.0, 1, None, False)
    record = worker.failed_record(job, "killed", "ended by SIGKILL", "memory", 1.5)
    assert record.status == "killed"
    assert record.phases["memory"].reason == "ended by SIGKILL"
    Store(tmp_path).write(record)
    assert Store(tmp_path).finished("s")[record.cell].status == "killed"


def test_a_kill_keeps_the_phases_before(tmp_path: Path) -> None:
    """Killed for real in its second phase: the first one's result is in the record that the parent writes."""
    spec = digits(epochs=50)[1].model_copy(update={"phases": ("memory", "train")})
    job = Job(spec, "s", "0" * 64, str(tmp_path), new_run_id(), 60.0, 1, None, False)
    child = multiprocessing.get_context("spawn").Process(target=worker.run_cell, args=(job,))
    child.start()
    saved = tmp_path / partial.FOLDER / f"{job.run_id}.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (saved.exists() and b'"peak_live_bytes":' in saved.read_bytes()):
        time.sleep(0.05)
    child.kill()
    child.join()
    record = worker.failed_record(job, "killed", "ended by SIGKILL", "train", 3.0)
    assert record.status == "killed"
    assert record.phases["memory"].status == "ok"
    assert record.memory is not None
    assert record.memory.peak_live_bytes
    Store(tmp_path).write(record)
    assert not saved.exists()
    assert len(Store(tmp_path).records()) == 1


def test_an_unwritable_store_has_its_own_exit_code(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("not a folder")
    with pytest.raises(SystemExit) as caught:
        worker.run_cell(Job(make_spec(), "s", "0" * 64, str(target), new_run_id(), 5.0, 1, None, False))
    assert caught.value.code == NO_RECORD_EXIT_CODE
