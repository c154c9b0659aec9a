"""What happens in a process that the fork server makes, before and around the function it was made for."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness import announce
from harness.executors.job import Job


class Descriptor:
    """A file descriptor that travels to the child along with its arguments."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd),)


def _received(handle: Any) -> Descriptor:
    return Descriptor(handle.detach())


def guard() -> None:
    """Make this process the head of a group of its own that dies with the parent.

    A group of its own lets the parent end grandchildren (data loaders) too. The thread is needed because the fork
    server, not the parent, is this process's parent for the kernel: nothing else tells of the parent's death.
    """
    os.setsid()
    # blocked since the server's start; what has come since is the parent's to deal with, as what comes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True, name="parent-watch").start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not in a child process")
    wait([parent.sentinel])
    os.killpg(os.getpgrp(), signal.SIGKILL)


def set_environment(environment: Mapping[str, str]) -> None:
    """Take over the parent's environment: this process was forked from a server with an older one."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def resolve(entry: str) -> Callable[..., Any]:
    """The function named ``module:attribute``."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def run_job(job: str, entry: str, environment: Mapping[str, str], channel: Connection, log: Descriptor) -> None:
    """Run one cell: ``entry`` with the job.

    Args:
        job: :meth:`Job.to_json`.
        entry: ``module:function`` that takes a :class:`Job`.
        environment: complete environment of the process.
        channel: takes what the worker announces.
        log: file that takes stdout and stderr.
    """
    guard()
    for stream in (1, 2):
        os.dup2(log.fd, stream)
    faulthandler.enable()  # where a segmentation fault happened goes to the log
    set_environment(environment)
    announce.connect(channel)
    resolve(entry)(Job.from_json(job))


def answer(channel: Connection, environment: Mapping[str, str], entry: str, arguments: tuple[Any, ...]) -> None:
    """Call ``entry`` and send ``(True, result)`` or ``(False, text of the exception)``."""
    guard()
    set_environment(environment)
    try:
        reply: tuple[bool, Any] = (True, resolve(entry)(*arguments))
    except Exception as error:
        reply = (False, f"{type(error).__name__}: {error}")
    channel.send(reply)


def describe_server(preload: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
    """The fork server as seen by its child: its pid, its number of threads, and what it failed to import.

    The server swallows the errors of its imports, and more than one thread in it can leave a child with a lock that
    nobody will release.
    """
    server = os.getppid()
    missing = tuple(name for name in preload if name not in sys.modules)
    tasks = Path(f"/proc/{server}/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else 1
    return server, threads, missing
