"""How processes are started, and pipes to them made; only the supervisor starts any.

And what every worker does around its work: settings, reports, and ending with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
from fastrl.allocator import keep_freed_memory
from fastrl.errors import FastrlError
from fastrl.free_memory import lack_of_memory
from fastrl.workers.descent import (
    LACKS,
    OF_GROUPS,
    NoThreadError,
    end_descendants,
    ignore_signal,
    start_thread,
)
from fastrl.workers.hand_over import StopRequestedError

Connection = connection.Connection
Process = BaseProcess

_PRELOAD = ("fastrl.workers.fork_server", "fastrl.workers.preload")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STARTING = threading.Lock()
_START_ATTEMPTS, _END_S, _POLL_S = 5, 1.0, 0.05
"""How often a fork server that was killed is replaced, and how long it may take to be gone."""
_CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)
"""Signals that a process gets for what it does itself."""
_LOOK_S, _STOPPED_LOOKS = 1.0, 5
_DESCRIPTORS = 16
"""More than starting a process takes for a moment."""
_REMEDIES = {
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "raise the limit with ulimit -n",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, or the pids limit of the container)",
    errno.ENOMEM: "lower sampler.num_env_workers, or give the processes more memory",
}
_PR_SET_NAME = 15
_SUMMARY_CHARS, _TRACEBACK_CHARS = 2_000, 12_000
"""Length limit of a report: a pipe holds 64 KiB, and the reader may not have started yet."""

_depth = 0
_of_this_process_only: weakref.WeakSet[Connection] = weakref.WeakSet()


def depth() -> int:
    """Return how many workers deep this process is; 0 where the user's script runs."""
    return _depth


def pipe(*, duplex: bool = False) -> tuple[Connection, Connection]:
    """Return the two ends, (receive, send), of a pipe that can be passed to a worker.

    Args:
        duplex: Whether both ends send and receive.

    Raises:
        FastrlError: This process has no descriptors left.
    """
    try:
        receive, send = _context().Pipe(duplex=duplex)
    except OSError as error:
        raise FastrlError(f"no pipe to a worker can be made: {_reason(error)}") from error
    return receive, send


def close_in_forks(end: Connection) -> None:
    """Close an end of a pipe in every fork of this process: its other end must see our end."""
    _of_this_process_only.add(end)


def _context() -> Any:  # noqa: ANN401
    """Return the start method: forkserver, so that torch is imported once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


class _Packed:
    """A call that is unpacked in the worker, where failures of unpacking are reported."""

    def __init__(self, call: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unpacked, (bytes(reduction.ForkingPickler.dumps(self._call)),)


class _Unpacked:
    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __call__(self) -> None:
        target, args = pickle.loads(self._packed)
        del self._packed
        target(*args)


def started(name: str, target: Callable[..., None], args: tuple[Any, ...], *rest: Any) -> Process:  # noqa: ANN401
    """Return a process that has been started and runs ``target(*args)`` in `worker_main`.

    Args:
        name: What it is called.
        target: What it does.
        args: Arguments of ``target``.
        *rest: Further arguments of `worker_main`.

    Raises:
        FastrlError: The system has no descriptors, processes or memory left for it.
    """
    if multiprocessing.current_process().daemon:
        raise FastrlError(
            f"{name} cannot be started: this process is daemonic, and such may start no others"
        )
    try:
        return _started(name, (name, _Packed((target, args)), *rest))
    except NoThreadError as error:
        raise FastrlError(f"{name} cannot be started: {error}") from error
    except OSError as error:
        raise FastrlError(f"{name} cannot be started: {_reason(error)}") from error


def _started(name: str, args: tuple[Any, ...]) -> Process:
    _check_descriptors()
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        process: Process = _context().Process(target=_run, args=args, name=f"fastrl-{name}")
        try:
            with _light_start(), _without_a_stopped_server():
                _ensure_server()
                process.start()
        except (ConnectionError, EOFError) as error:
            _raise_where_the_server_ended_itself()
            # It was killed, so the next attempt starts another one.
            if not attempts_left:
                raise ConnectionError(errno.ECONNREFUSED, "the fork server is gone") from error
        else:
            return process
    raise AssertionError


def _raise_where_the_server_ended_itself() -> None:
    """Wait until the fork server has ended, and raise `OSError` where another would end as well.

    One that was killed, or told to end, is no reason to give up.
    """
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


def _end_of_server() -> Any:  # noqa: ANN401
    """Return how the fork server has ended; None where it runs, or nothing is known of it."""
    until_s, pid = time.monotonic() + _END_S, _server_pid()
    while pid and hasattr(os, "waitid"):
        try:
            # Not collected, so that multiprocessing sees the end, too, and starts another one.
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if ended is not None or time.monotonic() > until_s:
            return ended
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)
    return None


def _check_descriptors() -> None:
    """Raise `OSError` where too few are left: failing later takes the fork server down as well."""
    taken: list[int] = []
    try:
        for _ in range(_DESCRIPTORS // 2):
            taken += os.pipe()
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _run(*args: Any) -> None:  # noqa: ANN401
    _forget_server()
    worker_main(*args)


def worker_main(
    name: str,
    work: Callable[[], None],
    report: Connection,
    lifeline: Connection,
    torch_threads: int,
    depth: int,
) -> None:
    """Run a worker; report what it raises.

    Args:
        name: What it is called in messages.
        work: What it does.
        report: Takes one (summary, traceback) if it fails.
        lifeline: Ends with the process that started this one.
        torch_threads: Intra-op threads of torch.
        depth: How many workers, this one included, are between it and the user's process.
    """
    import torch

    global _depth
    _depth = depth
    _leave_signals_to_the_supervisor()
    _take_name(name)
    keep_freed_memory()
    torch.set_num_threads(torch_threads)
    try:
        _die_with_parent(lifeline)
        work()
    except StopRequestedError:
        pass
    except BaseException as error:
        lack = lack_of_memory(error)
        trace = "" if lack else _clipped(traceback.format_exc(), _TRACEBACK_CHARS)
        with contextlib.suppress(OSError):  # the reader may have ended
            report.send((_clipped(lack, _SUMMARY_CHARS) or _summary(error), trace))
        sys.exit(1)


def _summary(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # somebody else's __str__
        text = f"{type(error).__name__} (its message cannot be printed)"
    return _clipped(text, _SUMMARY_CHARS)


def _clipped(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is too long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […] {text[-limit // 2 :]}"


def _leave_signals_to_the_supervisor() -> None:
    """Go on when a whole process group is told to end: the supervisor decides what ends, and when.

    Ctrl-C, a closed terminal and many schedulers signal all processes at once, and a worker that
    ended before its run was saved would look like a failure. What an environment starts with exec
    gets the default for SIGTERM back, so that it can be terminated.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_signal)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _take_name(name: str) -> None:
    """Have ``ps`` and ``top`` show who this is, in the 15 bytes that Linux gives to a name."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def _die_with_parent(lifeline: Connection) -> None:
    """End this process and its children when the one that started it is gone, even by SIGKILL.

    The fork server's end does the same (see `fastrl.workers.fork_server`), even where native code
    never lets this thread run.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        end_descendants()
        os.kill(os.getpid(), signal.SIGKILL)

    start_thread("lifeline", watch)


def _forget_server() -> None:
    """Let the fork server of the parent go: it lives as long as a descriptor of it is open."""
    server = _server()
    alive, server._forkserver_alive_fd = server._forkserver_alive_fd, None
    server._forkserver_address = server._forkserver_pid = None
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)


def _ensure_server() -> None:
    """Start a fork server where none runs, and leave no file of it in the temporary directory."""
    if sys.platform.startswith("linux"):
        with _unnamed_address(), _without_signals_to_groups():
            forkserver.ensure_running()


@contextlib.contextmanager
def _unnamed_address() -> Iterator[None]:
    """Let a fork server that is started meanwhile listen at a socket whose file is removed.

    A socket is found by the descriptor of its file, too. So nothing is left where a process is
    killed, and the path may be longer than the 107 bytes of a socket's address.
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
    """Remove the file of the fork server's socket; clients use a descriptor from now on."""
    path, server = os.path.join(directory, "socket"), _server()
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH)
        server._forkserver_address = f"/proc/self/fd/{descriptor}"
        # The descriptor is closed together with the server's own, as an object of the server.
        server._fastrl_address = _Descriptor(descriptor)
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(directory)


class _Descriptor:
    """Closes a descriptor when it is collected."""

    def __init__(self, number: int) -> None:
        weakref.finalize(self, os.close, number)


@contextlib.contextmanager
def _without_signals_to_groups() -> Iterator[None]:
    """Keep signals to all processes from a fork server that cannot ignore them yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _light_start() -> Iterator[None]:
    """Start processes without running the user's script again, and with one thread each.

    multiprocessing imports the main script into every child. Workers do not need it, since what
    the script defines travels by value; so scripts need no ``if __name__ == "__main__"``, and N
    workers do not repeat their imports.
    """
    with _STARTING:
        given = dict.fromkeys(_ONE_THREAD, "1") | {once.VARIABLE: once.place()}
        main, before = sys.modules["__main__"], {key: os.environ.get(key) for key in given}
        sys.modules["__main__"] = types.ModuleType("__main__")
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
    """End a fork server that was stopped by a signal: who asks it for a process waits for ever."""
    done = threading.Event()

    def watch() -> None:
        looks = 0
        while looks < _STOPPED_LOOKS and not done.wait(_LOOK_S):
            looks = looks + 1 if _server_is_stopped() else 0
        if not done.is_set():
            end_stopped_server()

    watcher = start_thread("fork-server-watch", watch)
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


def _server() -> Any:  # noqa: ANN401
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
    """Return what the system said, and what can be done about it."""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def _after_fork() -> None:
    """Drop what keeps workers alive that belong to the process of which this is a fork."""
    for end in list(_of_this_process_only):
        end.close()
    _forget_server()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
