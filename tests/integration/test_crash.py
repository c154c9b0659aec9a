"""What is left when something dies: workers, the fork server, the whole run."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from harness.store import Store
from tests.harness import cells
from tests.integration.driver import alive, start, until


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def statuses(store):
    return {record.spec.T: record.status for _, record in Store(store).records()}


def test_every_way_to_die_leaves_a_record_and_the_others_untouched(tmp_path, store):
    suite = cells.suite_file(tmp_path, steps=range(2, 9), timeout=8.0)
    run = start(suite, store, "fails_in_every_way")
    said, _ = run.communicate(timeout=120)
    assert statuses(store) == {
        2: "error", 3: "killed", 4: "timeout", 5: "diverged", 6: "error", 7: "ok", 8: "ok"
    }  # fmt: skip
    assert run.returncode == 1, said
    phases = {record.spec.T: record.phases for _, record in Store(store).records()}
    assert "no such layer" in phases[2]["train"].traceback
    assert "SIGKILL" in phases[3]["train"].reason
    assert "limit of 8 s" in phases[4]["train"].reason
    assert 8.0 <= phases[4]["train"].seconds < 60.0  # it would sleep for ten minutes
    assert "exit code 0" in phases[6]["train"].reason
    assert "[7/7]" in said
    (note,) = cells.notes(store)
    until(lambda: not alive(note["pid"]) and not alive(note["grandchild"]))


def test_kill_9_of_the_run_takes_its_cells_along_and_loses_only_them(tmp_path, store):
    suite = cells.suite_file(tmp_path, steps=(2, 3, 4))
    run = start(suite, store, "hangs_after_first")
    notes = until(lambda: len(found := cells.notes(store)) == 2 and statuses(store) and found)
    run.kill()
    run.communicate()
    until(lambda: not any(alive(note[who]) for note in notes for who in ("pid", "grandchild")))
    (first,) = statuses(store)
    assert statuses(store) == {first: "ok"}
    again = start(suite, store, "records")
    said, _ = again.communicate(timeout=120)
    assert statuses(store) == {2: "ok", 3: "ok", 4: "ok"}
    assert cells.measured(store) == Counter({steps: 1 if steps == first else 2 for steps in (2, 3, 4)})
    assert again.returncode == 0, said


def test_a_fork_server_that_dies_costs_no_cell(tmp_path, store):
    suite = cells.suite_file(tmp_path, steps=range(2, 10))
    run = start(suite, store, "records_slowly", jobs=2)
    until(lambda: statuses(store))
    server = int((tmp_path / "measured.txt").read_text().split()[-1])
    assert server != run.pid
    os.kill(server, signal.SIGKILL)
    said, _ = run.communicate(timeout=120)
    assert set(statuses(store).values()) == {"ok"}, said
    assert len(statuses(store)) == 8, said
    assert run.returncode == 0


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "store").write_text("a file")
    suite = cells.suite_file(tmp_path)
    command = [sys.executable, "-m", "harness", "run", suite, "--store", str(tmp_path / "store")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("snnbench: ")
    assert run.stderr.count("\n") == 1
    assert str(tmp_path / "store") in run.stderr
