"""A run with a worker of the tests, as a process that can be killed: ``python -m tests.integration.driver ...``."""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from harness.executors.server import ForkServer
from harness.run.interrupt import Interrupt, StoppedError
from harness.run.session import Run
from harness.run.todo import RunOptions, select
from tests.harness import cells


def main(suite, store, worker, jobs):
    options = RunOptions(suite, Path(store), jobs=int(jobs), entry=cells.entry(worker))
    server = ForkServer(("harness.executors.child", "harness.store"))
    with Interrupt() as interrupt:
        try:
            result = Run(options, select(options), server, interrupt, Console()).measure()
        except StoppedError:
            return 130
    print(json.dumps(dict(result.counts)), flush=True)
    return result.exit_code(strict=False)


def start(suite, store, worker, jobs=2):
    """A run in a process of its own."""
    command = [sys.executable, "-m", "tests.integration.driver", suite, str(store), worker, str(jobs)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)


def until(condition, seconds=60.0):
    """Wait for something that another process brings about."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def alive(pid):
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
