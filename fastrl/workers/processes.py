"""Starts processes for the supervisor, and reports their errors."""

from __future__ import annotations

import contextlib
import errno
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, reduction
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from fastrl import once
from fastrl.errors import FastrlError, cause
from fastrl.system import keep_freed_memory, lack_of_memory
from fastrl.workers.descent import (
    LACKS,
    OF_GROUPS,
    NoThreadError,
    control_process,
    end_descendants,
    ignore_signal,
    mark_programs,
    start_thread,
)
from fastrl.workers.handoff import StopRequestedError

Connection = connection.Connection
Process = BaseProcess

_PRELOAD = ("fastrl.workers.fork_server", "fastrl.workers.preload")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STARTING = threading.Lock()
_START_ATTEMPTS, _END_S, _POLL_S = 5, 1.0, 0.05
"""Attempts to start a fork server, and seconds for a killed one to end."""
_CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)
"""Signals that a process causes itself."""
_CHECK_S, _STOPPED_CHECKS = 1.0, 5
"""Consecutive checks after which a stopped fork server is killed."""
_DESCRIPTORS = 16
"""Descriptors to keep free: more than the start of a process needs temporarily."""
_REMEDIES = {
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "raise the limit with ulimit -n",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, or the pids limit of the container)",
    errno.ENOMEM: "lower sampler.num_env_workers, or give the processes more memory",
}
_PR_SET_NAME = 15
_SUMMARY_CHARS, _TRACEBACK_CHARS = 2_000, 12_000
"""Length limits of a report: a pipe takes 64 KiB, and its reader may not have started yet."""

_depth = 0
_of_this_process_only: weakref.WeakSet[Connection] = weakref.WeakSet()


def depth() -> int:
    """Return the depth of this process in the tree of workers; 0 for the user's script."""
    return _depth


def pipe(*, duplex: bool = False) -> tuple[Connection, Connection]:
    """Return the ends (receive, send) of a pipe that can be passed to a worker.

    Raises:
        FastrlError: This process has no descriptors left.
    """
    try:
        receive, send = _context().Pipe(duplex=duplex)
    except OSError as error:
        raise FastrlError(f"a pipe to a worker cannot be created: {_reason(error)}") from error
    return receive, send


def close_in_forks(end: Connection) -> None:
    """Close an end of a pipe in forks of this process, so that the other end notices its end."""
    _of_this_process_only.add(end)


def _context() -> Any:
    """Return the start method; a fork server imports torch once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


class _Work:
    """A call that is pickled as bytes, so that the worker reports failures of unpickling.

    It is passed as a list of one item, which `_run` removes: multiprocessing keeps the arguments of
    a process for its whole life, and states of environments may be large.
    """

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._call = target, args

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([bytes(reduction.ForkingPickler.dumps(self._call))],)


def start_process(
    name: str, target: Callable[..., None], args: tuple[Any, ...], settings: tuple[Any, ...]
) -> Process:
    """Start a process that runs ``target(*args)``.

    Args:
        name: Name of the process in messages.
        target: Function of the process.
        args: Arguments of ``target``.
        settings: Last arguments of `_run`.

    Raises:
        FastrlError: The system has no descriptors, processes or memory left for it.
    """
    if multiprocessing.current_process().daemon:
        raise FastrlError(
            f"{name} cannot be started: this process is daemonic and cannot start others; those of "
            "concurrent.futures.ProcessPoolExecutor are not daemonic"
        )
    try:
        return _start(name, (name, _Work(target, args), *settings))
    except NoThreadError as error:
        raise FastrlError(f"{name} cannot be started: {error}") from error
    except OSError as error:
        raise FastrlError(f"{name} cannot be started: {_reason(error)}") from error


def _start(name: str, args: tuple[Any, ...]) -> Process:
    _check_descriptors()
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        process: Process = _context().Process(target=_run, args=args, name=f"fastrl-{name}")
        try:
            with _light_start(), _without_a_stopped_server():
                _ensure_server()
                process.start()
        except (ConnectionError, EOFError) as error:
            _raise_if_the_server_failed()
            # The server was killed, so the next attempt starts another one.
            if not attempts_left:
                raise ConnectionError(errno.ECONNREFUSED, "the fork server has ended") from error
        else:
            return process
    raise AssertionError


def _raise_if_the_server_failed() -> None:
    """Wait for the end of the fork server and raise `OSError`, unless another process ended it."""
    ended = _end_of_server()
    if ended is None:
        return
    if ended.si_code == os.CLD_EXITED and ended.si_status:
        number = ended.si_status - LACKS
        if number in errno.errorcode:
            raise OSError(number, os.strerror(number))
        raise OSError(errno.ECHILD, f"the fork server ended with exit code {ended.si_status}")
    if ended.si_code != os.CLD_EXITED and ended.si_status in _CRASHES:
        name = signal.Signals(ended.si_status).name
        raise OSError(errno.ECHILD, f"the fork server was ended by {name}")


def _end_of_server() -> Any:
    """Return the exit status of the fork server; None if it runs or if that is unknown."""
    until_s, pid = time.monotonic() + _END_S, _server_pid()
    while pid and hasattr(os, "waitid"):
        try:
            # Its status is not collected, so that multiprocessing notices its end and starts
            # another.
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if ended is not None or time.monotonic() > until_s:
            return ended
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)
    return None


def _check_descriptors() -> None:
    """Raise `OSError` if too few are left: a later failure would end the fork server as well."""
    taken: list[int] = []
    try:
        for _ in range(_DESCRIPTORS // 2):
            taken += os.pipe()
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _run(
    name: str,
    work: list[bytes],
    report: Connection,
    lifeline: Connection,
    torch_threads: int,
    depth: int,
    mark: str,
) -> None:
    """Run a worker, and report its exception. Entry point of every process.

    Args:
        name: Name of the worker in messages.
        work: The call, as `_Work` pickles it.
        report: Pipe for (summary, traceback) if it fails.
        lifeline: Closed when the process that started this one ends.
        torch_threads: Intra-op threads of torch.
        depth: See `depth`.
        mark: See `mark_programs`.
    """
    import torch

    global _depth
    _depth = depth
    _forget_server()
    _ignore_group_signals()
    mark_programs(mark)
    control_process(_PR_SET_NAME, name.encode()[:15])  # for ps and top, which show 15 bytes
    keep_freed_memory()
    torch.set_num_threads(torch_threads)
    try:
        _end_with_lifeline(lifeline)
        target, args = pickle.loads(work.pop())
        target(*args)
    except StopRequestedError:
        pass
    except BaseException as error:
        lack = lack_of_memory(error)
        trace = "" if lack else _clipped(traceback.format_exc(), _TRACEBACK_CHARS)
        with contextlib.suppress(OSError):  # the reader may have ended
            report.send((_clipped(lack or cause(error), _SUMMARY_CHARS), trace))
        sys.exit(1)
    finally:
        # The fork server would adopt the processes of environments.
        end_descendants()


def _clipped(text: str, limit: int) -> str:
    """Return the text without its middle if it is too long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […] {text[-limit // 2 :]}"


def _ignore_group_signals() -> None:
    """Ignore signals to the whole process group, as the supervisor ends workers.

    Ctrl-C, a closed terminal and many schedulers signal all processes at once, and a worker that
    ended before its run was saved would look like a failure. Programs that an environment starts
    with exec have the default handler of SIGTERM, so that they can be terminated.
    """
    for number in OF_GROUPS:
        signal.signal(number, ignore_signal if number == signal.SIGTERM else signal.SIG_IGN)


def _end_with_lifeline(lifeline: Connection) -> None:
    """End this process and its children when its starter ends, even by SIGKILL.

    The end of the fork server does the same (see `fastrl.workers.fork_server`), even if native
    code never lets this thread run.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        end_descendants()
        os.kill(os.getpid(), signal.SIGKILL)

    start_thread("lifeline", watch)


def _forget_server() -> None:
    """Close the descriptor of the parent's fork server, which runs while one is open."""
    server = _server()
    alive, server._forkserver_alive_fd = server._forkserver_alive_fd, None
    server._forkserver_address = server._forkserver_pid = None
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)


def _ensure_server() -> None:
    """Start a fork server if none runs, without a file in the temporary directory."""
    if not sys.platform.startswith("linux"):
        return
    # A new server cannot ignore signals to the process group yet.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUPS)
    try:
        with _unnamed_address():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _unnamed_address() -> Iterator[None]:
    """Make a fork server that starts in the block listen at a socket whose file is removed.

    Clients find the socket by a descriptor of its file. So a killed process leaves no file,
    and the path may be longer than the 107 bytes of a socket's address.
    """
    directories: list[tuple[str, int]] = []

    def address(family: str) -> str:
        path = tempfile.mkdtemp(prefix="fastrl-")
        directories.append((path, os.open(path, os.O_PATH)))
        return f"/proc/self/fd/{directories[-1][1]}/socket"

    module: Any = forkserver
    names = vars(connection) | {"arbitrary_address": address}
    module.connection = types.SimpleNamespace(**names)
    try:
        yield
    finally:
        module.connection = connection
        for path, descriptor in directories:
            _remove_name(path)
            os.close(descriptor)


def _remove_name(directory: str) -> None:
    """Remove the file of the fork server's socket, which clients then find by a descriptor."""
    path, server = os.path.join(directory, "socket"), _server()
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH)
        server._forkserver_address = f"/proc/self/fd/{descriptor}"
        os.unlink(path)
        previous, server._fastrl_address = getattr(server, "_fastrl_address", None), descriptor
        if previous is not None:
            os.close(previous)
    with contextlib.suppress(OSError):
        os.rmdir(directory)


@contextlib.contextmanager
def _light_start() -> Iterator[None]:
    """Start processes with one thread each, and without importing the user's script.

    multiprocessing would import it into every child. Workers do not need that, as functions of the
    script are pickled by value; so scripts need no ``if __name__ == "__main__"``.
    """
    with _STARTING:
        given = dict.fromkeys(_ONE_THREAD, "1") | {once.VARIABLE: once.place()}
        main, before = sys.modules["__main__"], {key: os.environ.get(key) for key in given}
        hidden: Any = types.ModuleType("__main__")
        # Other threads still find the script's objects, and `running_script` finds the script.
        hidden.__file__, hidden.__wrapped__ = None, main
        hidden.__getattr__ = functools.partial(getattr, main)
        sys.modules["__main__"] = hidden
        os.environ.update(given)
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
    """Kill a fork server that was stopped by a signal, so that a start does not wait forever."""
    done = threading.Event()

    def watch() -> None:
        stopped = 0
        while stopped < _STOPPED_CHECKS and not done.wait(_CHECK_S):
            stopped = stopped + 1 if _server_is_stopped() else 0
        if not done.is_set():
            end_stopped_server()

    watcher = start_thread("fork-server-watch", watch)
    try:
        yield
    finally:
        done.set()
        watcher.join()


def end_stopped_server() -> None:
    """Kill the fork server if a signal has stopped it, as it must end its workers."""
    if _server_is_stopped():
        with contextlib.suppress(OSError):
            os.kill(_server_pid(), signal.SIGKILL)


def _server() -> Any:
    return vars(forkserver)["_forkserver"]


def _server_pid() -> int:
    return _server()._forkserver_pid or 0


def _server_is_stopped() -> bool:
    pid = _server_pid()
    try:
        return pid > 0 and psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _reason(error: OSError) -> str:
    """Return the system's message with a remedy."""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def _after_fork() -> None:
    """Close the descriptors in this fork that would keep workers of its parent alive."""
    for end in list(_of_this_process_only):
        end.close()
    _forget_server()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
