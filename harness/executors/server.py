"""The fork server that cells come from: it imports torch once, initialises no CUDA, and forks in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import ModuleType
from typing import Any

from harness.executors import child

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SERVER_ENVIRONMENT = {
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    # jemalloc inside pyarrow otherwise starts a thread when it is imported (jemalloc(3), opt.background_thread)
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What keeps the server at a single thread."""
PRELOAD = ("harness.preload",)
DEAD_SERVER_EXIT_CODE = 255
"""What multiprocessing reports for a child whose fork server died (``popen_forkserver.Popen.poll``)."""

DEATH_S = 3.0
"""How long a dying server may take; it has to give back its memory."""

_CONTEXT = multiprocessing.get_context("forkserver")


class ServerError(RuntimeError):
    """The fork server does not work on this machine, or a call in one of its children failed."""


@dataclass(frozen=True)
class ServerState:
    """The running fork server.

    Args:
        pid: its process id.
        threads: how many threads it has; more than one can hang its children.
        missing: modules that it should have imported and did not.
    """

    pid: int
    threads: int
    missing: tuple[str, ...]


class ForkServer:
    """The process's one fork server (multiprocessing keeps one for each process).

    Args:
        preload: modules that it imports when it starts.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        self.preload = tuple(preload)
        self.warnings: list[str] = []
        self._state: ServerState | None = None

    def begin(self) -> None:
        """Start the server, if it does not run, and do not wait for its imports."""
        if self.alive():
            return
        _CONTEXT.set_forkserver_preload(list(self.preload))
        resource_tracker.ensure_running()  # the server would start it, which unblocks SIGINT
        with _environment(SERVER_ENVIRONMENT), _deaf_to_ctrl_c():
            forkserver.ensure_running()

    def stop(self) -> None:
        """End the server, which would otherwise import to the end before it sees that nobody needs it."""
        pid = self.pid or _running()
        if pid is not None and not _ended(pid):
            os.kill(pid, signal.SIGKILL)
            self.died(pid)
        self._state = None

    def state(self) -> ServerState:
        """The server as a child of it sees it; waits for its imports the first time.

        A server that has more than one thread is replaced by one that imports nothing: slow cells instead of cells
        that hang.

        Raises:
            ServerError: no child can be started.
        """
        if self._state is None or not self.alive():
            self._state = self._ask()
            if self._state.threads > 1:
                self._drop_preload(self._state)
                self._state = self._ask()
            if self._state.missing:
                self.warnings.append(
                    f"the fork server could not import {', '.join(self._state.missing)}: cells are slow"
                )
        return self._state

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is not known."""
        return None if self._state is None else self._state.pid

    def alive(self) -> bool:
        """Whether the server that :meth:`state` saw still runs."""
        return self._state is not None and not _ended(self._state.pid)

    def died(self, pid: int | None) -> bool:
        """Whether the server with this process id has died, or is about to.

        A killed server closes its sockets, and its children are given up, before it can be seen to be dead.
        """
        end = time.monotonic() + DEATH_S
        while pid is not None and not _ended(pid):
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def launch(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> ForkServerProcess:
        """Run a module-level function in a new child of the server.

        Raises:
            ServerError: the child did not start, twice.
        """
        for attempt in (1, 2):
            self.begin()
            process = _CONTEXT.Process(target=function, args=arguments)
            try:
                with _nameless_main():
                    process.start()
            except (EOFError, OSError) as error:
                # the first start after a server was killed can still meet its remains
                if attempt == 2:
                    raise ServerError(f"the fork server started no child: {type(error).__name__}: {error}") from error
                if self.died(self.pid or _running()):
                    self._state = None
                continue
            return process
        raise AssertionError("unreachable")

    def call(self, entry: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
        """Result of ``module:function`` called in a child of its own.

        Raises:
            ServerError: it raised, or the child died.
        """
        with Call(self, entry, arguments, environment) as call:
            wait([call.channel, call.process.sentinel])
            return call.result()

    def _ask(self) -> ServerState:
        return ServerState(*self.call("harness.executors.child:describe_server", self.preload))

    def _drop_preload(self, state: ServerState) -> None:
        self.warnings.append(
            f"importing {', '.join(self.preload)} started {state.threads - 1} threads, which can hang forked cells: "
            "every cell imports for itself instead, which takes seconds each"
        )
        self.preload = ()
        os.kill(state.pid, signal.SIGKILL)
        os.waitid(os.P_PID, state.pid, os.WEXITED | os.WNOWAIT)


class Call:
    """A function that runs in a child; a context manager that ends the child on leaving.

    Args:
        server: where the child comes from.
        entry: ``module:function``.
        arguments: its arguments.
        environment: the child's environment; this process's by default.
    """

    def __init__(
        self, server: ForkServer, entry: str, arguments: tuple[Any, ...], environment: Mapping[str, str] | None = None
    ) -> None:
        self.entry = entry
        self.channel, theirs = _CONTEXT.Pipe(duplex=False)
        inherited = dict(os.environ) if environment is None else dict(environment)
        self.process = server.launch(child.answer, (theirs, inherited, entry, arguments))
        theirs.close()

    def result(self) -> Any:
        """What the function returned; call it when the channel or the sentinel is ready.

        Raises:
            ServerError: it raised, or the child died.
        """
        try:
            fine, value = self.channel.recv()
        except EOFError:
            self.process.join()
            raise ServerError(f"{self.entry}: the process died with exit code {self.process.exitcode}") from None
        if not fine:
            raise ServerError(str(value))
        return value

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        if not wait([self.process.sentinel], timeout=1.0):
            end_group(self.process.pid)
        self.process.join()
        self.channel.close()
        self.process.close()


def _running() -> int | None:
    """The process id of this process's server, which is not public before a child has told it; None without one."""
    pid: int | None = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    return pid


def _ended(child: int) -> bool:
    """Whether a child of this process has ended, its status read or not."""
    try:
        # WNOWAIT leaves the status to multiprocessing, which reaps its server itself
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def end_group(pid: int | None) -> None:
    """Kill a running child and all that it started."""
    if pid is not None and not sweep_group(pid):
        # not yet head of a group of its own, and so without children; or gone
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def sweep_group(pid: int) -> bool:
    """Kill what is left of an ended child's group; False when nothing is."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def pipe() -> tuple[Connection, Connection]:
    """A reading and a writing end that can be handed to a child."""
    return _CONTEXT.Pipe(duplex=False)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What starts inside does not get SIGINT, and the server ignores it later by itself: the parent deals with Ctrl-C.

    The parent deals with it at the end: half a start is none, and a signal that it ignored would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    struck = list[int]()
    # not blocked alone: any other thread of this process would take the signal
    before = signal.signal(signal.SIGINT, lambda number, _: struck.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what starts here inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if struck:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide the main module: multiprocessing would run the user's script again in every child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
