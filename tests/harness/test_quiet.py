"""The turnstile that keeps timed phases alone, between real processes."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from harness import quiet

HOLD = """
import sys, time
from pathlib import Path
from harness import quiet
with getattr(quiet, sys.argv[1])(Path(sys.argv[2])):
    print(time.time(), flush=True)
    {inside}
print(time.time(), flush=True)
"""


class Holder:
    """A process that is inside ``busy`` or ``alone``."""

    def __init__(self, mode, folder, inside="sys.stdin.read()"):
        script = HOLD.format(inside=inside)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, mode, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def entered(self):
        return float(self.process.stdout.readline())

    def waits(self, seconds=0.4):
        os.set_blocking(self.process.stdout.fileno(), False)
        time.sleep(seconds)
        waiting = self.process.stdout.readline() == ""
        os.set_blocking(self.process.stdout.fileno(), True)
        return waiting

    def leave(self):
        self.process.communicate(timeout=60)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


def gate_is_taken(folder, seconds=60.0):
    """Wait until somebody waits for the room with the gate in its hand; a process may be slow to start."""
    end = time.monotonic() + seconds
    with (folder / f"snnbench-{os.getuid()}-gate.lock").open() as gate:
        while time.monotonic() < end:
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(gate, fcntl.LOCK_UN)
            time.sleep(0.02)
    return False


@pytest.fixture
def holder(tmp_path):
    holders = []

    def make(mode, **options):
        holders.append(Holder(mode, tmp_path, **options))
        return holders[-1]

    yield make
    for each in holders:
        each.process.kill()
        each.process.wait()


def test_ordinary_phases_run_beside_each_other(holder):
    first, second = holder("busy"), holder("busy")
    assert first.entered()
    assert second.entered()


def test_a_timed_phase_waits_for_ordinary_ones_and_later_ones_wait_for_it(holder, tmp_path):
    ordinary = holder("busy")
    ordinary.entered()
    timed = holder("alone")
    assert gate_is_taken(tmp_path)
    assert timed.waits()
    later = holder("busy")
    assert later.waits(), "a later ordinary phase must not overtake a waiting timed one"
    ordinary.leave()
    timed.entered()
    assert later.waits()
    timed.leave()
    later.entered()


def test_timed_phases_run_one_at_a_time(holder):
    first = holder("alone")
    first.entered()
    second = holder("alone")
    assert second.waits()
    first.leave()
    second.entered()


@pytest.mark.parametrize("mode", ["busy", "alone"])
def test_a_killed_holder_leaves_nothing_locked(holder, mode):
    first = holder(mode)
    first.entered()
    second = holder("alone")
    assert second.waits()
    first.kill()
    second.entered()


def test_a_killed_waiter_leaves_the_gate_open(holder, tmp_path):
    ordinary = holder("busy")
    ordinary.entered()
    timed = holder("alone")
    assert gate_is_taken(tmp_path)
    assert timed.waits()
    timed.kill()
    holder("busy").entered()


def test_a_data_loader_that_outlives_its_cell_holds_no_lock(holder):
    """Locks belong to open files, which a forked process shares."""
    forks = "import os; os.fork() or time.sleep(200); print('forked', flush=True); time.sleep(200)"
    first = holder("alone", inside=forks)
    first.entered()
    assert first.process.stdout.readline() == "forked\n"
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    begin = time.monotonic()
    holder("alone").entered()
    assert time.monotonic() - begin < 100  # the fork sleeps longer
    os.killpg(first.process.pid, signal.SIGKILL)


def test_nesting_is_refused_and_does_not_deadlock(tmp_path):
    with quiet.busy(tmp_path), pytest.raises(RuntimeError, match="do not nest"), quiet.alone(tmp_path):
        pytest.fail("entered")
    with quiet.alone(tmp_path):
        pass


def test_a_link_in_the_shared_folder_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    (tmp_path / f"snnbench-{os.getuid()}-room.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"), quiet.busy(tmp_path):
        pytest.fail("entered")
    assert not target.exists()
