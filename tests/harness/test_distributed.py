"""Cells of several devices: real processes, gloo on the CPU."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from harness import registry, worker
from harness.build import DATA_SEED_OFFSET, collate, loader, open_bench
from harness.distributed import norm
from harness.distributed.launch import diagnose
from harness.distributed.ranks import ALONE, Ranks, buckets
from harness.errors import UsageError
from harness.executors.devices import Slot, environment, joined
from harness.executors.job import Job, Outcome
from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer
from harness.record import PhaseResult, Record
from harness.run.interrupt import Interrupt, StoppedError
from harness.spec import CellSpec
from harness.store import Store, new_run_id
from harness.suite import load
from tests.harness import cells
from tests.harness.benches import make_spec
from tests.harness.ranks import CASES
from tests.harness.test_local_executor import alive, until
from tests.harness.test_training import digits

Launch = Callable[[CellSpec, str], tuple[Outcome, Record | None]]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.stop()  # it remembers the plugins of now; later tests install others


@pytest.fixture
def launch(server: ForkServer, tmp_path: Path) -> Launch:
    """Runs a worker of :mod:`tests.harness.ranks` as an executor does; gives the record that it left, if any."""

    def run(spec: CellSpec, name: str) -> tuple[Outcome, Record | None]:
        job = Job(spec, "s", "0" * 64, str(tmp_path), new_run_id(), 240.0, 1, None, False)
        (outcome,) = LocalExecutor(1, entry=f"tests.harness.ranks:{name}", server=server).run([job])
        return outcome, next((item.record for item in Store(tmp_path).records()), None)

    return run


def test_two_ranks_have_the_gradient_of_one_process(launch: Launch, tmp_path: Path) -> None:
    """In float64, to rounding: every way in which methods accumulate gradients and update."""
    outcome, _ = launch(make_spec(devices=2), "compare_gradients")
    assert outcome.exitcode == 0, outcome.log
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert set(first) == set(second) == set(CASES)
    for name, found in first.items():
        assert max(found["one_process"], second[name]["one_process"]) < 1e-10, name
    bptt = first["bptt"]
    assert bptt["whole"] < 1e-10
    assert bptt["keys"]
    assert bptt["apart"] < 1e-12
    assert bptt["synchronised"] == [True, ""]
    assert bptt["plain"] == [None, "the prepared model has no batch normalisation"]
    assert "different parameters" in bptt["uneven"]


def test_a_cell_of_two_devices_trains_as_one_of_one_device_does(launch: Launch) -> None:
    """All of the worker, with another real cell beside it to compare with."""
    bench, spec = digits(epochs=1, norm="over_time")
    phases = ("fidelity", "memory", "time", "ops", "train")
    outcome, record = launch(CellSpec.model_validate({**spec.model_dump(), "devices": 2, "phases": phases}), "measure")
    assert outcome.exitcode == 0, outcome.log
    assert record is not None
    assert record.status == "ok", record.phases
    shared = record.distributed
    assert shared is not None
    assert (shared.devices, shared.rank_batch, shared.backend, shared.sync_batchnorm) == (2, 16, "gloo", True)
    assert shared.one_process_l2 is not None
    # in single precision a membrane at its threshold may fire on one side only; equality is the float64 test's
    assert shared.one_process_l2 < 0.05
    assert max(found.relative_l2 for found in record.fidelity) < 0.05
    assert record.memory is not None
    assert [one.rank for one in record.memory.ranks] == [0, 1]
    assert record.memory.peak_live_bytes == max(one.peak_live_bytes or 0 for one in record.memory.ranks)
    assert record.memory.split is not None
    assert record.memory.split.inputs < sum(x.nbytes for x in bench.batch), "a rank holds its part of the batch"
    assert record.timing is not None
    assert len(record.timing.ranks) == 2
    assert record.timing.step_time_s >= max(one.step_time_s for one in record.timing.ranks)
    assert record.ops is not None
    from harness import ops, training

    assert record.ops.synops == ops.measure(bench).synops
    alone, _ = training.measure(bench)
    assert record.training is not None
    ours, theirs = record.training.epochs[-1], alone.epochs[-1]
    assert record.training.steps == alone.steps
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=5e-2)
    assert ours.test_loss == pytest.approx(theirs.test_loss, rel=0.25)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_killed_rank_ends_the_cell_with_its_number(launch: Launch) -> None:
    outcome, record = launch(make_spec(devices=2, phases=("fidelity", "memory")), "one_is_killed")
    assert (outcome.exitcode, outcome.timed_out) == (0, False)
    assert record is not None
    assert record.status == "killed"
    assert record.phases["memory"].reason == "rank 1 was ended by SIGKILL"
    assert record.phases["fidelity"].status == "ok"
    assert record.fidelity[0].relative_l2 < 0.05, "what was found before the kill is kept"


def test_a_rank_that_fails_alone_ends_the_cell_with_its_error(launch: Launch) -> None:
    outcome, record = launch(make_spec(devices=2), "one_runs_out_of_memory")
    assert (outcome.exitcode, outcome.timed_out) == (0, False)
    assert record is not None
    assert record.status == "oom"
    assert record.phases["memory"].bytes_requested == 4096
    assert (record.phases["memory"].reason or "").startswith("rank 1: RuntimeError")


def test_stopping_a_cell_ends_all_its_ranks(server: ForkServer, tmp_path: Path) -> None:
    def stop() -> None:
        until(lambda: len(cells.notes(tmp_path)) == 2, seconds=240.0)
        os.kill(os.getpid(), signal.SIGINT)

    with Interrupt() as interrupt:
        threading.Thread(target=stop).start()
        executor = LocalExecutor(1, entry="tests.harness.ranks:sleeps", server=server, interrupt=interrupt)
        with pytest.raises(StoppedError):
            list(executor.run([cells.job(tmp_path, devices=2, timeout_s=300.0)]))
    notes = cells.notes(tmp_path)
    assert {note["rank"] for note in notes} == {"0", "1"}
    assert len({note["group"] for note in notes}) == 1, "one group, which limits and kills reach"
    until(lambda: not any(alive(note["pid"]) for note in notes))


@pytest.mark.slow
def test_every_method_has_the_gradient_of_one_process(method: str, launch: Launch, tmp_path: Path) -> None:
    """Random choices and stochastic masks would differ by rank: nothing in these cells draws any."""
    outcome, _ = launch(make_spec(method, devices=2), "every_method")
    assert outcome.exitcode == 0, outcome.log
    found = json.loads((tmp_path / "found.json").read_text())
    if isinstance(found, str):
        pytest.skip(f"unsupported: {found}")
    assert found < 1e-10


def test_a_machine_with_too_few_gpus_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(worker, "_record", lambda result: cells.minimal_record(result.job, phases=result.phases))
    worker.run_cell(Job(make_spec(device="cuda", devices=2), "s", "0" * 64, str(tmp_path), "r", 60.0, 1, None, False))
    (stored,) = Store(tmp_path).records()
    build = stored.record.phases["build"]
    assert build.status == "unavailable"
    assert "asks for 2 CUDA devices, and torch sees 1" in (build.reason or "")


def test_one_process_cannot_open_a_cell_of_two() -> None:
    with pytest.raises(ValueError, match="needs a process for each"):
        open_bench(make_spec(devices=2))


def test_one_device_leaves_the_identity_as_it_was() -> None:
    spec = make_spec()
    assert "devices" not in spec.canonical()
    two = CellSpec.model_validate({**spec.model_dump(), "devices": 2})
    assert two.hash != spec.hash
    assert two.group("seed") != spec.group("seed")
    assert two.group("seed", "devices") == spec.group("seed", "devices")
    assert CellSpec.model_validate(two.model_dump(mode="json")) == two
    assert "on 2 devices" in two.label()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"devices": 4}, "batch = 6 cannot be shared equally by devices = 4"),
        ({"devices": 2, "predicted": True}, "a predicted cell runs on no device"),
        ({"devices": 0}, "greater than or equal to 1|greater than 0"),
    ],
)
def test_a_cell_that_cannot_be_shared_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_spec(**fields)


def test_a_suite_has_an_axis_of_devices(tmp_path: Path) -> None:
    file = Path(cells.suite_file(tmp_path, steps=[4]))
    text = file.read_text()
    file.write_text(text.replace("batch = 2\n", "batch = 2\ndevices = [1, 2]\n"))
    found = load(str(file))
    assert [cell.devices for cell in found.expand("cpu")] == [1, 2]
    assert [cell.devices for cell in found.expand("cpu", {"devices": ["2"]})] == [2]
    file.write_text(text.replace("batch = 2\n", "batch = 2\ndevices = 3\n"))
    with pytest.raises(UsageError, match=r"grid\[0\]: batch = 2 cannot be shared equally by devices = 3$"):
        load(str(file)).expand("cpu")


def test_ranks_take_equal_parts_of_every_batch_in_the_order_of_one_process() -> None:
    bench, spec = digits()
    assert bench.splits is not None
    data = bench.splits.train
    order = torch.Generator().manual_seed(spec.seed + DATA_SEED_OFFSET)
    known = torch.utils.data.DataLoader(
        data, batch_size=spec.batch, shuffle=True, drop_last=True, collate_fn=collate, generator=order
    )
    both = [loader(data, spec, train=True, ranks=Ranks(rank, 2)) for rank in range(2)]
    for (x, y), *parts in zip(known, *both, strict=True):
        assert [len(labels) for _, labels in parts] == [16, 16]
        assert torch.equal(torch.cat([part for part, _ in parts], dim=1), x)
        assert torch.equal(torch.cat([labels for _, labels in parts]), y)
    seen = [len(y) for rank in range(3) for _, y in loader(bench.splits.test, spec, train=False, ranks=Ranks(rank, 3))]
    assert sum(seen) == 100, "every test sample once, whatever the number of ranks"


def test_a_share_has_its_own_storage() -> None:
    x, y = torch.arange(24.0).view(2, 4, 3), torch.arange(4)
    part, labels = Ranks(1, 2).share((x, y))
    assert torch.equal(part, x[:, 2:])
    assert labels.tolist() == [2, 3]
    assert part.untyped_storage().nbytes() == x.nbytes // 2
    assert ALONE.share((x, y))[0] is x


def test_buckets_hold_one_dtype_and_so_many_bytes() -> None:
    sizes = [(4, torch.float32), (4, torch.float32), (100, torch.float32), (1, torch.float64), (1, torch.float32)]
    gradients = [torch.zeros(count, dtype=dtype) for count, dtype in sizes]
    found = list(buckets(gradients, limit=40))
    assert [[g.numel() for g in bucket] for bucket in found] == [[4, 4], [100], [1], [1]]
    assert [g for bucket in found for g in bucket] == gradients


def test_synchronising_keeps_layers_and_names() -> None:
    model = registry.create("models", make_spec(net={"norm": "per_step"}).model).build((3, 8, 8), 5)
    names, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    norm.synchronise(model)
    norm.synchronise(model)  # twice is once
    assert list(model.state_dict()) == names
    changed = [m for m, kind in zip(model.modules(), kinds, strict=True) if type(m) is not kind]
    assert changed
    assert all(isinstance(m, (norm.Synced, nn.BatchNorm2d)) and m.step_mode == "m" for m in changed)
    x = torch.rand(2, 3, 3, 8, 8)
    model.eval()
    assert model(x).shape == (2, 3, 5)


def failure(rank: int, code: int, timestamp: int = 1) -> ProcessFailure:
    found = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="/nonexistent")
    found.timestamp = timestamp
    return found


@pytest.mark.parametrize(
    ("codes", "words", "oom", "status", "reason"),
    [
        ({0: 1, 1: -9}, {0: ("error", "connection closed by peer")}, False, "killed", "rank 1 was ended by SIGKILL"),
        ({0: -15, 1: -11}, {}, False, "killed", "rank 1 was ended by SIGSEGV"),
        ({0: -15, 1: -9}, {}, True, "oom", "rank 1: ended by the kernel's OOM killer"),
        ({0: 1, 1: 1}, {0: ("error", "peer"), 1: ("oom", "full")}, False, "oom", "rank 1: full"),
        ({0: -15, 1: 3}, {}, False, "error", "exit code"),
    ],
)
def test_the_first_rank_that_was_lost_is_the_reason(
    codes: dict[int, int], words: dict[int, tuple[Any, str]], oom: bool, status: str, reason: str
) -> None:
    failures = {rank: failure(rank, code) for rank, code in codes.items()}
    said = {rank: PhaseResult(status=status, reason=text) for rank, (status, text) in words.items()}
    lost = diagnose(failures, said, oom)
    assert lost.outcome.status == status
    assert reason in (lost.outcome.reason or "")


def test_a_cell_of_two_devices_takes_two_gpus(server: ForkServer, tmp_path: Path) -> None:
    """Bookkeeping of slots needs no GPU: a device is a name in the environment."""
    one, two = cells.job(tmp_path, device="cuda"), cells.job(tmp_path, device="cuda", devices=2, batch=4)
    jobs = [replace(job, run_id=str(n)) for n, job in enumerate([one, two, one, two])]
    devices = ("GPU-a", "GPU-b", "GPU-c")
    executor = LocalExecutor(1, devices, entry=cells.entry("fine"), server=server)
    assert {outcome.exitcode for outcome in executor.run(jobs)} == {0}
    masks = [note["environment"]["CUDA_VISIBLE_DEVICES"].split(",") for note in cells.notes(tmp_path)]
    assert sorted(len(mask) for mask in masks) == [1, 1, 2, 2]
    assert {name for mask in masks for name in mask} <= set(devices)
    assert all(len(set(mask)) == len(mask) for mask in masks)


def test_a_cell_that_asks_for_more_gpus_than_there_are_gets_all(server: ForkServer, tmp_path: Path) -> None:
    job = cells.job(tmp_path, device="cuda", devices=4, batch=4)
    executor = LocalExecutor(1, ("GPU-a", "GPU-b"), entry=cells.entry("fine"), server=server)
    assert [outcome.exitcode for outcome in executor.run([job])] == [0]
    (note,) = cells.notes(tmp_path)
    assert note["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_joined_slots_are_seen_in_order(tmp_path: Path) -> None:
    both = joined([Slot("cuda", 2, "2"), Slot("cuda", 0, "0")])
    assert (both.index, both.token) == (2, "2,0")
    assert environment(cells.job(tmp_path, device="cuda"), both)["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert joined([Slot("cpu")]) == Slot("cpu")
