"""The supervisor: starts worker processes, reports their errors and ends them."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import cloudpickle

from fastrl.errors import FastrlError, WorkerError
from fastrl.system import lack_of_memory
from fastrl.workers.descent import descendants_of, end_all, marked
from fastrl.workers.processes import (
    Connection,
    Process,
    close_in_forks,
    depth,
    end_stopped_server,
    pipe,
    start_process,
)

_LOGGER = logging.getLogger(__name__)
GRACE_S = 2.0
"""Default time in which workers must end before they are killed."""

_KILLED_S = 10.0
"""Time in which the kernel must end a killed process."""
_SLICE_S = 0.05
"""Interval at which a waiting process checks that the other one is alive."""
_DEEPEST = 2
"""Most levels of workers: workers may have workers, for instance in an environment."""


@dataclass
class _Child:
    process: Process
    report: Connection
    mark: str
    reported: tuple[str, str] | None = None


@dataclass(frozen=True)
class Closes:
    """The deadline of each environment that workers close before they end.

    Attributes:
        begun: Returns the number of closes that a worker, given by name, has begun.
        timeout_s: Deadline of each close.
        key: The configuration key of this deadline.
    """

    begun: Callable[[str], int]
    timeout_s: float
    key: str = "env.close_timeout_s"


class Supervisor:
    """Owns the processes of one run.

    They end on `stop`, when this object is collected, and when this process exits or is killed.

    Args:
        request_stop: Function that `stop` calls first, to wake waiting workers.
        torch_threads: Intra-op threads of torch in every worker.
        grace_s: Time in which workers must end before they are killed.
        closes: A deadline for each environment that workers close before they end.
    """

    def __init__(
        self,
        request_stop: Callable[[], None],
        torch_threads: int = 1,
        grace_s: float = GRACE_S,
        closes: Closes | None = None,
    ) -> None:
        self._torch_threads = torch_threads
        closes = closes or Closes(lambda _: 0, grace_s)
        self._children: dict[str, _Child] = {}
        self._lifeline_read, lifeline = pipe()
        for end in (self._lifeline_read, lifeline):
            close_in_forks(end)
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), self._children, request_stop, lifeline, (grace_s, closes)
        )
        # Before multiprocessing's exit handler, which would wait for the workers forever.
        atexit.register(self._finalizer)

    def start(self, name: str, target: Callable[..., None], *args: Any) -> None:
        """Start a worker that runs ``target(*args)`` and is called ``name`` in messages.

        Raises:
            FastrlError: The system has no descriptors, processes or memory left for it; or
                workers start workers at too many levels.
        """
        if depth() >= _DEEPEST:
            raise FastrlError(
                "workers start workers that start workers: the modules that env.id, env.wrappers "
                "and model.class_path name are imported in every worker; what they run when they "
                "are imported belongs under if __name__ == '__main__'"
            )
        receive, send = pipe()
        with contextlib.closing(send):
            mark = uuid.uuid4().hex
            settings = (send, self._lifeline_read, self._torch_threads, depth() + 1, mark)
            process = start_process(name, target, args, settings)
            self._children[name] = _Child(process, receive, mark)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        # A copy, as another thread may replace workers.
        return {name: child.process.pid or 0 for name, child in dict(self._children).items()}

    def check(self) -> None:
        """Return at once if no worker has failed.

        Raises:
            WorkerError: A worker raised, was killed, or ended.
        """
        for name in self._failed():
            raise _error_of(name, self._children[name])

    def receive(self, connection: Connection, timeout_s: float, late: WorkerError) -> Any:
        """Return the object that a worker sends through a pipe.

        Raises:
            WorkerError: A worker raised or ended; or ``late`` if nothing came in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # In this order, as a worker may have sent the object before it ended.
            failed = self._failed()
            if connection.poll(0.0 if failed else _SLICE_S):
                with contextlib.suppress(EOFError, OSError):
                    return connection.recv()
            for name in failed:
                raise _error_of(name, self._children[name])
        raise late

    def failures(self) -> list[WorkerError]:
        """Remove every worker that raised, was killed or ended, and end its child processes.

        Returns the errors, of which the first one is the likeliest cause of the others. The names
        may be used again.
        """
        return [self._remove(name) for name in self._failed()]

    def kill(self, name: str) -> None:
        """Kill a worker and its descendants, and remove it."""
        process = self._children[name].process
        started_by_it = descendants_of([process.pid or 0])
        _kill(process)
        self._remove(name)
        end_all(started_by_it)

    def _failed(self) -> list[str]:
        """Return the workers that have ended or reported an error."""
        # Both are needed: children of a worker may have inherited the report's pipe, and a worker
        # that has reported may still be waiting for its threads.
        watched: dict[Any, str] = {}
        for name, child in self._children.items():
            watched |= {child.report: name, child.process.sentinel: name}
        ready = {watched[each] for each in connection.wait(watched, timeout=0)}
        # One failure often causes others: workers with an error report come first.
        return sorted(ready, key=lambda name: not _reported(self._children[name]))

    def _remove(self, name: str) -> WorkerError:
        child = self._children.pop(name)
        error = _error_of(name, child)
        _collect(child)
        end_all(marked({child.mark}))
        return error

    def stop(self) -> None:
        """End every worker, within about the grace time; safe to call twice."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def call_in_child(
    function: Callable[[], Any],
    timeout_s: float,
    close_timeout_s: float | None = None,
    close_key: str = "env.close_timeout_s",
) -> Any:
    """Return ``function()``, evaluated in a short-lived process.

    If the result is a context manager, the process enters it, returns the value, and exits it.

    Args:
        function: Pickled by value.
        timeout_s: Deadline of the call.
        close_timeout_s: Time in which the process must exit the context manager, which closes an
            environment, before it is killed with a warning. By default `GRACE_S`, without one.
        close_key: The configuration key of this deadline.

    Raises:
        FastrlError: An error of the function.
        WorkerError: The function raised another error, or did not finish in time.
    """
    receive, send = pipe()
    outcomes: list[Any] = []
    closes = None
    if close_timeout_s is not None:
        closes = Closes(lambda _: len(outcomes), close_timeout_s, close_key)
    supervisor = Supervisor(request_stop=lambda: None, closes=closes)
    payload = cloudpickle.dumps(function)
    try:
        supervisor.start("probe", _send_result, payload, send)
        send.close()
        late = WorkerError("probe", f"the environment was not built within {timeout_s:g} s")
        outcomes.append(supervisor.receive(receive, timeout_s, late))
    finally:
        supervisor.stop()
        receive.close()
    if isinstance(outcomes[0], FastrlError):
        raise outcomes[0]
    return outcomes[0]


def _send_result(payload: bytes, send: Connection) -> None:
    with contextlib.ExitStack() as opened:
        try:
            outcome = cloudpickle.loads(payload)()
            if isinstance(outcome, contextlib.AbstractContextManager):
                outcome = opened.enter_context(outcome)
        except FastrlError as error:
            outcome = error
        except Exception as error:
            lack = lack_of_memory(error)
            if not lack:
                raise
            outcome = FastrlError(lack)
        send.send_bytes(cloudpickle.dumps(outcome))


def _reported(child: _Child) -> tuple[str, str] | None:
    """Return (summary, traceback) of a worker that raised, or None."""
    if child.reported is None:
        # A worker that dies during its report may leave any bytes.
        with contextlib.suppress(Exception):
            if child.report.poll():
                child.reported = child.report.recv()
    return child.reported


def _error_of(name: str, child: _Child) -> WorkerError:
    reported = _reported(child)
    child.process.join(GRACE_S)
    if reported is not None:
        summary, remote = reported
        return WorkerError(name, f"{name} failed: {summary}", remote)
    code = child.process.exitcode
    if code is None:
        return WorkerError(name, f"{name} has closed its pipes and did not end; it was killed")
    if code >= 0:
        return WorkerError(name, f"{name} ended unexpectedly with exit code {code}")
    try:
        by = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        by = f"signal {-code}"
    return WorkerError(name, f"{name} was killed by {by}")


def _end(
    owner: int,
    children: dict[str, _Child],
    request_stop: Callable[[], None],
    lifeline: Connection,
    limits: tuple[float, Closes],
) -> None:
    """End all workers, except in a fork of their owner."""
    if os.getpid() != owner:
        return
    pids = [child.process.pid or 0 for child in children.values()]
    started_by_them = descendants_of(pids) + marked({child.mark for child in children.values()})
    try:
        request_stop()
        _wait(children, *limits)
    finally:
        # Also after a second Ctrl-C during the wait.
        end_stopped_server()
        if any(child.process.is_alive() for child in children.values()):
            started_by_them += descendants_of(pids)
        for child in children.values():
            _kill(child.process)
        for child in children.values():
            _collect(child)
        end_all(started_by_them)
        children.clear()
        lifeline.close()


def _wait(children: dict[str, _Child], grace_s: float, closes: Closes) -> None:
    """Wait until each worker has ended or exceeded its time."""
    since = {name: (0, time.monotonic()) for name in children}
    while since:
        for name, (begun, begun_s) in list(since.items()):
            if not children[name].process.is_alive():
                del since[name]
                continue
            now = closes.begun(name)
            limit_s = closes.timeout_s if now else grace_s
            if now != begun:
                since[name] = (now, time.monotonic())
            elif time.monotonic() - begun_s >= limit_s:
                del since[name]
                if now:
                    _LOGGER.warning(
                        "%s did not close an environment within %g s, and was killed with its "
                        "child processes; raise %s if it needs longer",
                        name,
                        limit_s,
                        closes.key,
                    )
        if since:
            sentinels: list[Any] = [children[name].process.sentinel for name in since]
            connection.wait(sentinels, timeout=_SLICE_S)


def _kill(process: Process) -> None:
    # The id of an ended process may belong to another one by now.
    if process.is_alive():
        process.kill()


def _collect(child: _Child) -> None:
    """Kill a worker if it is alive, and free its resources."""
    _kill(child.process)
    child.process.join(_KILLED_S)
    child.report.close()
    # A killed process that hangs in the kernel cannot be collected.
    with contextlib.suppress(ValueError):
        child.process.close()
