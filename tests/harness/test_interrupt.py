"""Ctrl-C: noted, never lost, and acted on at once where a process only waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from multiprocessing.connection import wait

import pytest

from harness.executors.server import ForkServer
from harness.run.interrupt import Interrupt, StoppedError


@pytest.mark.parametrize("number", Interrupt.SIGNALS)
def test_a_signal_is_noted_and_wakes_who_waits(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        interrupt.check()
        signal.raise_signal(number)
        assert wait([interrupt.reader], timeout=10) == [interrupt.reader]
        with pytest.raises(StoppedError):
            interrupt.check()


def test_a_second_signal_acts_at_once() -> None:
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_long_wait_is_left_at_the_first_signal() -> None:
    with Interrupt() as interrupt:
        with pytest.raises(StoppedError), interrupt.at_once():
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested
        with pytest.raises(StoppedError), interrupt.at_once():
            pytest.fail("it waits although a stop was asked for before")


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in Interrupt.SIGNALS]
    with Interrupt():
        assert [signal.getsignal(number) for number in Interrupt.SIGNALS] != before
    assert [signal.getsignal(number) for number in Interrupt.SIGNALS] == before


def test_ctrl_c_while_the_server_is_being_started_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: it was lost, because what starts there has to ignore it."""
    real, started, done = forkserver.ensure_running, list[bool](), threading.Event()

    def struck() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # whichever thread takes it has it now
        real()
        started.append(True)

    monkeypatch.setattr(forkserver, "ensure_running", struck)
    others = [threading.Thread(target=done.wait) for _ in range(3)]  # each of them would take the signal
    for thread in others:
        thread.start()
    server = ForkServer(("harness.executors.child",))
    try:
        with pytest.raises(KeyboardInterrupt):
            server.begin()
        assert started, "the signal struck the start itself"
        monkeypatch.undo()
        assert server.call("signal:pthread_sigmask", signal.SIG_BLOCK, []) == set(), "a cell has SIGINT blocked"
        assert server.call("signal:getsignal", signal.SIGINT) == signal.SIG_IGN
    finally:
        done.set()
        server.stop()


def test_ctrl_c_does_not_wait_for_the_servers_imports(tmp_path) -> None:
    """The imports take ten minutes here."""
    (tmp_path / "slow_import.py").write_text("import time; print('importing', flush=True); time.sleep(600)\n")
    (tmp_path / "script.py").write_text(
        "from harness.executors.server import ForkServer\n"
        "from harness.run.interrupt import Interrupt, StoppedError\n"
        "server = ForkServer(('slow_import',))\n"
        "with Interrupt() as interrupt:\n"
        "    try:\n"
        "        with interrupt.at_once():\n"
        "            server.state()\n"
        "    except StoppedError:\n"
        "        print('stopped')\n"
        "server.stop()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, str(tmp_path / "script.py")]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert script.stdout is not None
    assert script.stdout.readline() == "importing\n"
    os.killpg(script.pid, signal.SIGINT)
    said, _ = script.communicate(timeout=60)
    assert said == "stopped\n"
    assert script.returncode == 0
