"""How processes are started, and pipes to them made; only the supervisor starts any."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from fastrl.errors import FastrlError
from fastrl.workers.entry import worker_main

Connection = connection.Connection
Process = BaseProcess

_PRELOAD = ("fastrl.workers.preload",)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STARTING = threading.Lock()
_START_ATTEMPTS, _RETRY_S = 20, 0.05
_LOOK_S, _STOPPED_LOOKS = 1.0, 5
_DESCRIPTORS = 16
"""More than starting a process takes for a moment."""


def pipe() -> tuple[Connection, Connection]:
    """Return the two ends, (receive, send), of a pipe that can be passed to a worker.

    Raises:
        FastrlError: This process has no descriptors left.
    """
    try:
        receive, send = _context().Pipe(duplex=False)
    except OSError as error:
        raise FastrlError(f"no pipe to a worker can be made: {_reason(error)}") from error
    return receive, send


def _context() -> Any:  # noqa: ANN401
    """Return the start method: forkserver, so that torch is imported once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


def started(name: str, args: tuple[Any, ...]) -> Process:
    """Return a process that has been started and runs `worker_main` with these arguments.

    Raises:
        FastrlError: The system has no descriptors, processes or memory left for it.
    """
    if multiprocessing.current_process().daemon:
        raise FastrlError(
            f"{name} cannot be started: this process is daemonic, and such may start no others"
        )
    try:
        return _started(name, args)
    except OSError as error:
        raise FastrlError(f"{name} cannot be started: {_reason(error)}") from error


def _started(name: str, args: tuple[Any, ...]) -> Process:
    _check_descriptors()
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        process: Process = _context().Process(target=worker_main, args=args, name=f"fastrl-{name}")
        try:
            with _light_start(), _without_a_stopped_server():
                process.start()
        except (ConnectionError, EOFError) as error:
            # The fork server was killed; the next attempt starts another one, once the end of this
            # one is seen.
            if not attempts_left:
                raise ConnectionError(errno.ECONNREFUSED, "the fork server is gone") from error
            time.sleep(_RETRY_S)
        else:
            return process
    raise AssertionError


def _check_descriptors() -> None:
    """Raise `OSError` where too few are left: failing later takes the fork server down as well."""
    taken: list[int] = []
    try:
        for _ in range(_DESCRIPTORS // 2):
            taken += os.pipe()
    finally:
        for descriptor in taken:
            os.close(descriptor)


@contextlib.contextmanager
def _light_start() -> Iterator[None]:
    """Start processes without running the user's script again, and with one thread each.

    multiprocessing imports the main script into every child. Workers do not need it, since what
    the script defines travels by value; so scripts need no ``if __name__ == "__main__"``, and N
    workers do not repeat their imports.
    """
    with _STARTING:
        main, before = sys.modules["__main__"], {key: os.environ.get(key) for key in _ONE_THREAD}
        sys.modules["__main__"] = types.ModuleType("__main__")
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


@contextlib.contextmanager
def _without_a_stopped_server() -> Iterator[None]:
    """End a fork server that was stopped by a signal: who asks it for a process waits for ever."""
    done = threading.Event()

    def watch() -> None:
        looks = 0
        while looks < _STOPPED_LOOKS and not done.wait(_LOOK_S):
            looks = looks + 1 if _server_is_stopped() else 0
        if not done.is_set():
            end_stopped_server()

    watcher = threading.Thread(target=watch, name="fork-server-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def end_stopped_server() -> None:
    """End the fork server if a signal has stopped it: it tells of the end of its workers, too."""
    if _server_is_stopped():
        with contextlib.suppress(OSError):
            os.kill(_server_pid(), signal.SIGKILL)


def _server_pid() -> int:
    server: Any = vars(forkserver)["_forkserver"]
    return server._forkserver_pid or 0


def _server_is_stopped() -> bool:
    pid = _server_pid()
    try:
        return pid > 0 and psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _reason(error: OSError) -> str:
    """Return what the system said; a lack of descriptors has a remedy of its own."""
    lacks = error.errno in (errno.EMFILE, errno.ENFILE)
    return f"{error.strerror or error}{'; raise the limit with ulimit -n' if lacks else ''}"
