"""Stopped runs go on, and two runs on one store share the work."""

import json
import signal
from collections import Counter

import pytest

from harness.run.cellclaims import FOLDER
from harness.store import Store
from tests.harness import cells
from tests.integration.driver import alive, start, until


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def finished(store):
    return Counter(record.spec.T for _, record in Store(store).records())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_cleanly_and_the_same_command_goes_on(tmp_path, store, number):
    suite = cells.suite_file(tmp_path, steps=(2, 3))
    run = start(suite, store, "hangs_after_first")
    (note,) = until(lambda: finished(store) and cells.notes(store))
    run.send_signal(number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    until(lambda: not alive(note["pid"]) and not alive(note["grandchild"]))
    (first,) = finished(store)
    assert [path.suffix for path in (store / FOLDER).iterdir() if path.suffix == ".json"] == []
    again = start(suite, store, "records")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert finished(store) == Counter([2, 3])
    assert cells.measured(store) == Counter([2, 3, 5 - first])
    assert "[1/1]" in said


def test_two_runs_at_once_measure_nothing_twice_and_lose_nothing(tmp_path, store):
    suite = cells.suite_file(tmp_path, steps=range(2, 14))
    runs = [start(suite, store, "records_slowly", jobs=1) for _ in range(2)]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert finished(store) == Counter(range(2, 14))
    assert cells.measured(store) == Counter(range(2, 14))
    for words in said:
        assert json.loads(words.splitlines()[-1]) == {"ok": 12}


def test_a_run_waits_for_another_ones_cell_and_takes_it_over_when_that_run_dies(tmp_path, store):
    suite = cells.suite_file(tmp_path, steps=(2, 3))
    holder = start(suite, store, "hangs_after_first")
    until(lambda: finished(store) and cells.notes(store))
    (first,) = finished(store)
    second = start(suite, store, "records")
    line = until(second.stdout.readline)
    assert "waiting for 1 cells" in line
    holder.kill()
    holder.communicate()
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert finished(store) == Counter([2, 3])
    assert cells.measured(store) == Counter([2, 3, 5 - first])
