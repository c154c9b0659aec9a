"""A run from suite to records, with quick workers; what dies for real is in tests/integration."""

import io
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from harness import worker
from harness.errors import UsageError
from harness.executors.server import ForkServer
from harness.record import PhaseResult
from harness.run.cellclaims import Claims
from harness.run.estimate import estimates, wall_s
from harness.run.interrupt import Interrupt
from harness.run.prepare import prepare_all
from harness.run.session import LOGS, Run, RunResult, ensure_record, running_order
from harness.run.todo import RunOptions, default_profile, fingerprints, history, select, stale
from harness.spec import Ref
from harness.store import Store
from harness.suite import load
from tests.harness import cells
from tests.harness.distributions import installed


@pytest.fixture
def options(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    return RunOptions(cells.suite_file(tmp_path), store, entry=cells.entry("records"))


def measure(options):
    """Run; gives the result and what was printed."""
    said = io.StringIO()
    console = Console(file=said, width=500)
    server = ForkServer(("harness.executors.child",))
    with Interrupt() as interrupt:
        result = Run(options, select(options), server, interrupt, console).measure()
    return result, said.getvalue()


def runs(options):
    return [record for _, record in Store(options.store).records()]


def test_every_cell_leaves_a_record_and_is_not_measured_again(options):
    result, said = measure(options)
    assert result.counts == Counter(ok=3)
    assert result.measured == 3
    assert {record.spec.T for record in runs(options)} == {2, 3, 4}
    assert said.count(" ok ") == 3
    again, said = measure(options)
    assert (again.counts, again.measured, said) == (Counter(ok=3), 0, "")
    assert len(runs(options)) == 3


def test_fresh_measures_again_and_the_old_records_stay(options):
    measure(options)
    result, _ = measure(replace(options, fresh=True))
    assert (result.measured, len(runs(options))) == (3, 6)


def test_failures_are_results_that_only_retry_measures_again(tmp_path, options):
    failing = replace(
        options, suite=cells.suite_file(tmp_path, steps=(2, 3, 7)), entry=cells.entry("fails_in_every_way")
    )
    result, said = measure(failing)
    assert result.counts == Counter(error=1, killed=1, ok=1)
    assert "no record" in said
    assert measure(failing)[0].measured == 0
    mended = replace(failing, retry=frozenset({"killed"}), entry=cells.entry("records"))
    result, _ = measure(mended)
    assert (result.measured, result.counts) == (1, Counter(error=1, ok=2))


def test_a_record_from_other_code_is_stale_and_measured_again_when_asked(options):
    measure(options)
    selection = select(options)
    assert selection.todo == ()
    hashes = {cell.hash for cell in selection.cells}
    assert stale(selection.finished, selection.sizes, selection.cells) == hashes
    assert {cell.hash for cell in select(replace(options, retry=frozenset({"stale"}))).todo} == hashes


def test_a_record_of_this_code_and_machine_is_not_stale(options):
    (mine,) = fingerprints("cpu", 1)
    spec = select(options).cells[0]
    job = replace(cells.job(options.store, run_id="20261121T065101Z-00000000"), spec=spec, suite="small")
    Store(options.store).write(worker.failed_record(job, "error", "made here", "build", 1.0))
    selection = select(options)
    assert selection.finished[spec.hash].fingerprint == mine
    assert stale(selection.finished, selection.sizes, selection.cells) == set()


def test_an_unknown_status_to_retry_is_refused(options):
    with pytest.raises(UsageError, match=r"--retry: unknown status 'oum'.*'oom'"):
        select(replace(options, retry=frozenset({"oum"})))


def test_the_order_is_drawn_from_a_seed_and_both_are_recorded(tmp_path, options):
    many = replace(options, suite=cells.suite_file(tmp_path, steps=range(2, 8)), order_seed=7)
    expected = [cell.hash for cell in select(many).todo]
    random.Random(7).shuffle(expected)
    result, _ = measure(many)
    (log,) = (options.store / LOGS).iterdir()
    facts = json.loads(log.read_text())
    assert (result.order_seed, facts["order_seed"], facts["cells"]) == (7, 7, expected)
    begun = [int(line.split()[0]) for line in (tmp_path / "measured.txt").read_text().splitlines()]
    steps = {cell.hash: cell.T for cell in select(many).cells}
    assert begun == [steps[cell] for cell in expected]


def test_timed_cells_run_first_each_kind_in_random_order():
    timed = [cells.spec(seed=seed, phases=("memory", "time")) for seed in range(6)]
    others = [cells.spec(seed=seed) for seed in range(6)]
    mixed = [cell for pair in zip(others, timed, strict=True) for cell in pair]
    order = running_order(mixed, 3)
    assert ["time" in cell.phases for cell in order] == [True] * 6 + [False] * 6
    assert sorted(cell.hash for cell in order) == sorted(cell.hash for cell in mixed)
    assert order != running_order(mixed, 4)
    assert order[:6] != timed


def test_a_cell_that_another_run_finished_meanwhile_is_not_measured(options):
    selection = select(options)
    spec = selection.cells[0]
    job = replace(cells.job(options.store, run_id="20261121T065101Z-00000000"), spec=spec, suite="small")
    Store(options.store).write(cells.minimal_record(job))
    said = io.StringIO()
    with Interrupt() as interrupt:
        server = ForkServer(("harness.executors.child",))
        result = Run(options, selection, server, interrupt, Console(file=said, width=500)).measure()
    assert (result.measured, result.counts) == (2, Counter(ok=3))
    assert "elsewhere" in said.getvalue()
    assert spec.T not in cells.measured(options.store)


def test_claims_are_given_back(options):
    measure(options)
    claims = Claims(options.store)
    assert not any(claims.holder(cell.hash) for cell in select(options).cells)


def test_a_worker_that_could_not_write_its_record_gets_one_from_the_parent(options):
    result, said = measure(replace(options, entry="tests.harness.cells:cannot_write"))
    assert result.counts == Counter(error=3)
    assert "could not write its record" in said


def test_a_store_that_fills_up_ends_the_run_instead_of_wasting_it(options, tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        measure(replace(options, entry="tests.harness.cells:blocks_the_store"))


def test_the_run_limit_replaces_the_profiles(options):
    result, said = measure(replace(options, timeout_s=0.5, entry=cells.entry("sleeps"), jobs=3))
    assert result.counts == Counter(timeout=3)
    assert "limit of 0.5 s" in said


def test_a_profile_for_cuda_alone_is_refused_without_a_device(options, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r"--profile gpu.*Profiles for the CPU: cpu"):
        measure(replace(options, profile="gpu"))


def test_the_default_profile_is_the_first_without_a_gpu(options, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert default_profile(load(options.suite)) == "cpu"


@pytest.mark.parametrize(
    ("counts", "strict", "code"),
    [
        ({"ok": 2}, False, 0),
        ({"ok": 1, "unsupported": 1, "unavailable": 1}, False, 0),
        ({"ok": 1, "unavailable": 1}, True, 1),
        ({"ok": 1, "oom": 1}, False, 1),
        ({"diverged": 1}, False, 1),
    ],
)
def test_exit_codes(counts, strict, code):
    assert RunResult(Counter(counts), 1, 0).exit_code(strict) == code


DATA = """
import os
from pathlib import Path
from harness.contracts import DataInfo, DataSource, Unavailable

class Toy(DataSource):
    name, summary = "toy", "a toy"

    def info(self):
        return DataInfo((1, 2, 2), 2, "here")

    def prepare(self, steps):
        with Path(os.environ["PREPARED"]).open("a") as log:
            log.write(f"{steps} {os.getpid()}\\n")
        if steps == 3:
            raise Unavailable("toy.npz is missing", "download it")
        if steps == 4:
            raise OSError("the disk is full")

    def load(self, steps):
        raise NotImplementedError
"""


def test_data_are_prepared_once_in_a_process_of_their_own_and_failures_are_not_fatal(tmp_path, monkeypatch):
    log = tmp_path / "prepared.txt"
    monkeypatch.setenv("PREPARED", str(log))
    with installed(tmp_path, DATA, {"snnbench.datasets": {"toy": "Toy"}}):
        specs = [cells.spec(method=name, data=Ref(name="toy"), T=T) for T in (2, 3, 4) for name in ("a", "b")]
        specs.append(cells.spec(data=Ref(name="toy"), T=9, predicted=True))
        specs.append(cells.spec(data=Ref(name="gone"), T=9))
        server = ForkServer(("harness.executors.child",))
        server.stop()  # one that a test before has started may remember the plugins of then
        problems = prepare_all(specs, server)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [steps for steps, _ in lines] == ["2", "3", "4"]
    assert len({pid for _, pid in lines}) == 3
    assert problems == {
        "toy T=3": "toy.npz is missing; download it",
        "toy T=4": "OSError: the disk is full",
    }


def test_estimates_come_from_the_nearest_kin(tmp_path):
    def record(seconds, **fields):
        job = cells.job(tmp_path, **fields)
        return cells.minimal_record(job, phases={"build": PhaseResult(status="ok", seconds=seconds)})

    past = [record(1.0), record(3.0), record(50.0, seed=1), record(700.0, method="other", seed=2)]
    same, kin, cousin, stranger = (
        cells.spec(), cells.spec(seed=9), cells.spec(method="third"), cells.spec(T=99)
    )  # fmt: skip
    found = estimates([same, kin, cousin, stranger], past)
    assert found == {same.hash: 2.0, kin.hash: 3.0, cousin.hash: 26.5}


def test_wall_time_is_the_sum_of_the_phases(tmp_path):
    phases = {
        name: PhaseResult(status="ok", seconds=s) for name, s in {"build": 1.0, "memory": 2.0, "time": 3.0}.items()
    }
    assert wall_s(cells.minimal_record(cells.job(tmp_path), phases=phases)) == 6.0


def test_history_speaks_of_the_cells_to_run_only(options):
    measure(options)
    assert history(options, select(options)) == {}
    fresh = replace(options, fresh=True)
    assert set(history(fresh, select(fresh)).values()) == {1.0}


def test_the_output_of_a_dead_worker_is_in_its_record(options, tmp_path):
    measure(replace(options, suite=cells.suite_file(tmp_path, steps=[2]), entry=cells.entry("fails_in_every_way")))
    (record,) = runs(options)
    assert record.phases["train"].traceback.rstrip().endswith("ValueError: no such layer")


def test_a_record_that_is_there_is_left_alone(options, tmp_path):
    measure(replace(options, suite=cells.suite_file(tmp_path, steps=[5]), entry=cells.entry("fails_in_every_way")))
    ((path, record),) = Store(options.store).records()
    outcome = cells.outcome(replace(cells.job(options.store, run_id=record.run_id), spec=record.spec, suite="small"))
    before = path.read_bytes()
    assert ensure_record(Store(options.store), outcome) == path
    assert path.read_bytes() == before
