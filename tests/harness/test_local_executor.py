"""The local executor, with real processes that really die."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.executors.devices import Slot, environment, kind_of, tokens
from harness.executors.job import Job
from harness.executors.local import LocalExecutor
from harness.executors.server import ForkServer, ServerError
from harness.run.interrupt import Interrupt, StoppedError
from tests.harness import cells


@pytest.fixture(scope="module")
def server():
    made = ForkServer(("harness.executors.child",))
    made.stop()  # one that a test before has started has other modules in it
    yield made
    made.stop()


def run(server, worker, *jobs, slots=1, **options):
    executor = LocalExecutor(slots, entry=cells.entry(worker), server=server, **options)
    return list(executor.run(jobs))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=60.0):
    """Wait for a condition that another process brings about; a fork server that starts first may take long."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def test_job_survives_its_journey_through_json(tmp_path):
    job = replace(cells.job(tmp_path, seed=3), device_index=1, snapshot=True)
    assert Job.from_json(job.to_json()) == job


def test_a_cell_runs_in_a_group_of_its_own_with_the_parents_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_SERVER_STARTED", "yes")
    server.state()
    (outcome,) = run(server, "fine", replace(cells.job(tmp_path), threads=3))
    (note,) = cells.notes(tmp_path)
    assert (outcome.exitcode, outcome.signal, outcome.timed_out, outcome.oom_killed) == (0, None, False, False)
    assert note["pgid"] == note["sid"] == note["pid"] != os.getpid()
    assert note["environment"]["SET_AFTER_THE_SERVER_STARTED"] == "yes"
    assert note["environment"]["OMP_NUM_THREADS"] == "3"
    assert note["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert note["cwd"] == str(Path.cwd())


def test_the_servers_thread_limits_do_not_stay_in_this_process(server, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    server.stop()
    server.begin()
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_users_script_is_not_run_again_in_a_cell(tmp_path):
    """Scripts without an ``if __name__`` guard are what users write."""
    script = tmp_path / "script.py"
    script.write_text(
        "from harness.executors.server import ForkServer\n"
        "print('script', ForkServer(('harness.executors.child',)).call('math:sqrt', 9.0), flush=True)\n"
    )
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "script 3.0\n"


def test_an_exception_ends_one_cell_and_leaves_its_traceback(server, tmp_path):
    (outcome,) = run(server, "raises", cells.job(tmp_path))
    assert outcome.exitcode == 1
    assert outcome.phase == "memory"
    assert outcome.status == "error"
    assert outcome.log.endswith("ValueError: no such layer")


def test_a_failing_cell_touches_no_other(server, tmp_path):
    jobs = [cells.job(tmp_path, run_id=str(n), timeout_s=4.0 if n == 1 else 30.0) for n in range(4)]
    outcomes = run(server, "sleeps_shortly", *jobs[:1], *jobs[2:], slots=2) + run(server, "sleeps", jobs[1])
    assert [outcome.exitcode for outcome in outcomes] == [0, 0, 0, None]
    assert {note["pid"] for note in cells.notes(tmp_path)}.__len__() == 4


def test_a_segmentation_fault_is_a_killed_cell_that_says_where(server, tmp_path):
    (outcome,) = run(server, "segfault", cells.job(tmp_path))
    assert (outcome.signal, outcome.status) == (signal.SIGSEGV, "killed")
    assert "SIGSEGV" in outcome.reason
    assert "in segfault" in outcome.log


def test_an_exhausted_address_space_is_the_workers_own_error(server, tmp_path):
    (outcome,) = run(server, "out_of_address_space", cells.job(tmp_path))
    assert (outcome.exitcode, outcome.oom_killed) == (1, False)
    assert outcome.log.endswith("MemoryError")


def test_kill_9_from_outside_is_killed_not_oom(server, tmp_path):
    def kill():
        os.kill(until(lambda: cells.notes(tmp_path))[0]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    (outcome,) = run(server, "sleeps", cells.job(tmp_path))
    killer.join()
    assert (outcome.signal, outcome.oom_killed, outcome.timed_out) == (signal.SIGKILL, False, False)
    assert (outcome.status, outcome.phase) == ("killed", "train")


def test_the_limit_is_hard_and_reaches_grandchildren(server, tmp_path):
    (outcome,) = run(server, "with_grandchild", cells.job(tmp_path, timeout_s=4.0))
    assert outcome.status == "timeout"
    assert 4.0 <= outcome.seconds < 60.0  # the cell itself sleeps for ten minutes
    (note,) = cells.notes(tmp_path)
    until(lambda: not alive(note["pid"]) and not alive(note["grandchild"]))


def test_what_a_cell_leaves_running_is_swept_up(server, tmp_path):
    (outcome,) = run(server, "leaves_grandchild", cells.job(tmp_path))
    assert outcome.exitcode == 0
    until(lambda: not alive(cells.notes(tmp_path)[0]["grandchild"]))


def test_slots_limit_how_many_cells_run_at_once(server, tmp_path):
    run(server, "sleeps_shortly", *[cells.job(tmp_path, run_id=str(n)) for n in range(4)], slots=2)
    spans = [(note["begin"], note["end"]) for note in cells.notes(tmp_path)]
    beside = [sum(b < end and begin < e for b, e in spans) for begin, end in spans]
    assert max(beside) == 2


def test_waiting_for_the_machine_does_not_use_up_a_cells_time(server, tmp_path):
    """Six timed phases of a second, one after another, under a limit of 4.5 s each."""
    jobs = [cells.job(tmp_path, run_id=str(n), timeout_s=4.5) for n in range(6)]
    outcomes = run(server, "waits_its_turn", *jobs, slots=6)
    assert [outcome.exitcode for outcome in outcomes] == [0] * 6
    assert max(outcome.seconds for outcome in outcomes) > 4.5  # 6, less what it started after the first
    spans = sorted((note["begin"], note["end"]) for note in cells.notes(tmp_path))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_a_killed_fork_server_costs_one_retry(server, tmp_path):
    def kill():
        note = until(lambda: cells.notes(tmp_path))[0]
        os.kill(server.state().pid, signal.SIGKILL)
        orphans.append(note["pid"])

    orphans = []
    killer = threading.Thread(target=kill)
    killer.start()
    (outcome,) = run(server, "sleeps", cells.job(tmp_path, timeout_s=5.0))
    killer.join()
    assert outcome.status == "timeout", "the second attempt ran to its limit"
    assert len(cells.notes(tmp_path)) == 2
    until(lambda: not alive(orphans[0]))


def test_closing_the_run_kills_what_still_runs(server, tmp_path):
    executor = LocalExecutor(2, entry=cells.entry("sleeps"), server=server)
    short, long = cells.job(tmp_path, run_id="a", timeout_s=0.5), cells.job(tmp_path, run_id="b")
    outcomes = executor.run([short, long])
    assert next(outcomes).status == "timeout"
    outcomes.close()
    until(lambda: not any(alive(note["pid"]) for note in cells.notes(tmp_path)))


def test_an_interrupt_ends_running_cells_at_once(server, tmp_path):
    def stop():
        until(lambda: cells.notes(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    with Interrupt() as interrupt:
        threading.Thread(target=stop).start()
        begin = time.monotonic()
        with pytest.raises(StoppedError):
            run(server, "sleeps", cells.job(tmp_path, timeout_s=300.0), interrupt=interrupt)
    assert time.monotonic() - begin < 100  # the cell itself sleeps for ten minutes
    until(lambda: not alive(cells.notes(tmp_path)[0]["pid"]))


def test_the_parent_sleeps_while_a_cell_runs(server, tmp_path):
    server.state()
    gc.collect()  # of a process full of modules it takes a good part of a second
    before = time.process_time()
    run(server, "sleeps", cells.job(tmp_path, timeout_s=2.0))
    assert time.process_time() - before < 0.5  # who polls without a pause takes all of the two seconds


def test_a_module_that_cannot_be_preloaded_is_told_and_not_fatal(monkeypatch):
    """In a process of its own: multiprocessing has one fork server a process."""
    script = (
        "from harness.executors.server import ForkServer\n"
        "server = ForkServer(('no_such_module', 'harness.executors.child'))\n"
        "print(server.state().missing, server.warnings)\n"
    )
    assert "('no_such_module',)" in cells.python(script)


def test_a_server_with_threads_is_replaced_by_one_that_imports_nothing(tmp_path):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    script = (
        "from harness.executors.server import ForkServer\n"
        "server = ForkServer(('threaded',))\n"
        "print(server.state().threads, server.warnings)\n"
    )
    said = cells.python(script, PYTHONPATH=str(tmp_path))
    assert said.startswith("1 [")
    assert "started 1 threads" in said


def test_a_call_brings_back_the_result_or_the_error(server):
    assert server.call("math:sqrt", 9.0) == 3.0
    with pytest.raises(ServerError, match="math domain error"):
        server.call("math:sqrt", -1.0)
    with pytest.raises(ServerError, match="exit code 7"):
        server.call("os:_exit", 7)


@pytest.mark.parametrize(
    ("mask", "count", "expected"),
    [
        (None, 2, ("0", "1")),
        (None, 0, ()),
        ("", 0, ()),
        ("3,1", 2, ("3", "1")),
        ("0, 9", 1, ("0",)),
        ("GPU-8932f937-d72c,GPU-1234", 2, ("GPU-8932f937-d72c", "GPU-1234")),
        ("MIG-a,MIG-b", 1, ("MIG-a", "MIG-b")),
    ],
)
def test_cuda_devices_keep_the_names_of_the_parents_mask(mask, count, expected):
    assert tokens(mask, count) == expected


def test_a_cuda_cell_sees_its_own_device_and_a_predicted_one_is_not_confined(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    real, predicted = cells.job(tmp_path, device="cuda"), cells.job(tmp_path, device="cuda", predicted=True)
    assert environment(real, Slot("cuda", 1, "GPU-b"))["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert environment(predicted, Slot("cpu"))["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert (kind_of(real.spec), kind_of(predicted.spec)) == ("cuda", "cpu")


def test_one_cell_runs_on_each_gpu_slot(server, tmp_path):
    """The slots' bookkeeping needs no GPU: a device is a name in the environment."""
    jobs = [cells.job(tmp_path, run_id=str(n), device="cuda") for n in range(4)]
    assert len(run(server, "fine", *jobs, devices=("GPU-a", "GPU-b"))) == 4
    seen = {(note["environment"]["CUDA_VISIBLE_DEVICES"], note["device_index"]) for note in cells.notes(tmp_path)}
    assert seen == {("GPU-a", 0), ("GPU-b", 1)}
