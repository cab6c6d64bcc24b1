"""The only place that starts processes; it watches them, reports their errors and ends them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle

from fastrl.errors import FastrlError, WorkerError
from fastrl.workers.hand_over import StopRequestedError

GRACE_S = 2.0
"""How long workers may take to end by themselves before they are killed, by default."""

Connection = connection.Connection

_PRELOAD = ("fastrl.workers.preload",)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_HEAP_BYTES = 2**25  # the largest threshold that glibc accepts


@dataclass
class _Child:
    process: BaseProcess
    report: Connection


class Supervisor:
    """Owns the processes of one run.

    Whatever happens, they end: on `stop`, when this object is collected, when this process exits,
    and when it is killed.

    Args:
        request_stop: Called first when the processes are to end, to wake those that wait.
        torch_threads: Intra-op threads of torch in every worker.
        grace_s: How long workers may take to end by themselves before they are killed.
    """

    def __init__(
        self, request_stop: Callable[[], None], torch_threads: int = 1, grace_s: float = GRACE_S
    ) -> None:
        self._torch_threads = torch_threads
        self._children: dict[str, _Child] = {}
        self._lifeline_read, lifeline = pipe()
        self._finalizer = weakref.finalize(
            self, _end, self._children, request_stop, lifeline, grace_s
        )
        # Before multiprocessing's own exit handler, which would wait for the workers for ever.
        atexit.register(self._finalizer)

    def start(self, name: str, target: Callable[..., None], *args: Any) -> None:  # noqa: ANN401
        """Start a worker that runs ``target(*args)`` and is called ``name`` in every message."""
        receive, send = pipe()
        process = _context().Process(
            target=_worker_main,
            args=(name, target, args, send, self._lifeline_read, self._torch_threads),
            name=f"fastrl-{name}",
        )
        with _light_start():
            process.start()
        send.close()
        self._children[name] = _Child(process, receive)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        return {name: child.process.pid or 0 for name, child in self._children.items()}

    def check(self) -> None:
        """Return if every worker is alive and well; cheap enough for every wait.

        Raises:
            WorkerError: One raised, was killed, or ended by itself.
        """
        sentinels = [child.process.sentinel for child in self._children.values()]
        if not connection.wait(sentinels, timeout=0):
            return
        dead = [(n, c) for n, c in self._children.items() if not c.process.is_alive()]
        # One failure often brings down others: those that still have something to say come first.
        for name, child in sorted(dead, key=lambda item: not item[1].report.poll()):
            raise _error_of(name, child)

    def stop(self) -> None:
        """End every worker, within the grace time and a moment; safe to call twice."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def call_in_child(function: Callable[[], Any], timeout_s: float) -> Any:  # noqa: ANN401
    """Return ``function()``, evaluated in a short-lived process.

    Raises:
        FastrlError: What the function raised, if it was one of fastrl's own errors.
        WorkerError: It raised something else, or did not finish in time.
    """
    receive, send = pipe()
    supervisor = Supervisor(request_stop=lambda: None)
    payload = cloudpickle.dumps(function)
    try:
        supervisor.start("probe", _send_result, payload, send)
        send.close()
        deadline = time.monotonic() + timeout_s
        while not receive.poll(0.05):
            supervisor.check()
            if time.monotonic() > deadline:
                raise WorkerError("probe", f"the environment was not built within {timeout_s:g} s")
        outcome = cloudpickle.loads(receive.recv_bytes())
    finally:
        supervisor.stop()
    if isinstance(outcome, FastrlError):
        raise outcome
    return outcome


def _send_result(payload: bytes, send: Connection) -> None:
    try:
        outcome = cloudpickle.loads(payload)()
    except FastrlError as error:
        outcome = error
    send.send_bytes(cloudpickle.dumps(outcome))


def pipe() -> tuple[Connection, Connection]:
    """Return the two ends, (receive, send), of a pipe that can be passed to a worker."""
    receive, send = _context().Pipe(duplex=False)
    return receive, send


def _context() -> Any:  # noqa: ANN401
    """Return the start method: forkserver, so that torch is imported once for all workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


@contextlib.contextmanager
def _light_start() -> Iterator[None]:
    """Start processes without running the user's script again, and with one thread each.

    multiprocessing imports the main script into every child. Workers do not need it, since what
    the script defines travels by value; so scripts need no ``if __name__ == "__main__"``, and N
    workers do not repeat their imports.
    """
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


def _worker_main(
    name: str,
    target: Callable[..., None],
    args: tuple[Any, ...],
    report: Connection,
    lifeline: Connection,
    torch_threads: int,
) -> None:
    """Run a worker; report what it raises."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the supervisor decides
    _die_with_parent(lifeline)
    _keep_freed_memory()
    torch.set_num_threads(torch_threads)
    try:
        target(*args)
    except StopRequestedError:
        pass
    except BaseException as error:
        report.send((f"{type(error).__name__}: {error}", traceback.format_exc()))
        sys.exit(1)


def _die_with_parent(lifeline: Connection) -> None:
    """End this process when the one that started it is gone, even by SIGKILL."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    if sys.platform.startswith("linux"):
        # The fork server ends with the process that started it. This also ends a worker whose
        # native code never lets the thread above run.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_freed_memory() -> None:
    """Stop glibc from returning memory that the next step asks for again.

    A network's activations are freed and allocated at every step; fetched from the kernel each
    time, they cost a page fault per 4 KiB: a third of a conv net's forward pass at batch 64.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)


def _error_of(name: str, child: _Child) -> WorkerError:
    child.process.join(GRACE_S)
    code = child.process.exitcode
    if child.report.poll():
        with contextlib.suppress(EOFError):
            summary, remote = child.report.recv()
            return WorkerError(name, f"{name} failed: {summary}", remote)
    if code is not None and code < 0:
        return WorkerError(name, f"{name} was killed by {signal.Signals(-code).name}")
    return WorkerError(name, f"{name} ended unexpectedly with exit code {code}")


def _end(
    children: dict[str, _Child],
    request_stop: Callable[[], None],
    lifeline: Connection,
    grace_s: float,
) -> None:
    """Ask, wait, kill, collect."""
    request_stop()
    deadline = time.monotonic() + grace_s
    for child in children.values():
        child.process.join(max(0.0, deadline - time.monotonic()))
    for child in children.values():
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        child.report.close()
        child.process.close()
    children.clear()
    lifeline.close()
