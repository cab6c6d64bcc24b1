"""The only place that starts processes; it watches them, reports their errors and ends them."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import cloudpickle

from fastrl.errors import FastrlError, WorkerError
from fastrl.free_memory import lack_of_memory
from fastrl.workers.descent import descendants_of, end_all
from fastrl.workers.processes import (
    Connection,
    Process,
    close_in_forks,
    depth,
    end_stopped_server,
    pipe,
    started,
)

_LOGGER = logging.getLogger(__name__)
GRACE_S = 2.0
"""How long workers may take to end by themselves before they are killed, by default."""

_KILLED_S = 10.0
"""How long the kernel may take to end a process that was killed."""
_SLICE_S = 0.05
"""How often a process that waits for another one looks whether it is still there."""
_DEEPEST = 2
"""A worker may have workers, say because its environments are sampled from; these have none."""


@dataclass
class _Child:
    process: Process
    report: Connection
    last_words: tuple[str, str] | None = None


@dataclass(frozen=True)
class Closes:
    """What workers close before they end, which may take longer than their other ends.

    Attributes:
        begun: Returns by a worker's name how many closes it has begun; 0 before the first.
        timeout_s: How long each of them may take.
        key: What users call this deadline.
    """

    begun: Callable[[str], int]
    timeout_s: float
    key: str = "env.close_timeout_s"


class Supervisor:
    """Owns the processes of one run.

    Whatever happens, they end: on `stop`, when this object is collected, when this process exits,
    and when it is killed.

    Args:
        request_stop: Called first when the processes are to end, to wake those that wait.
        torch_threads: Intra-op threads of torch in every worker.
        grace_s: How long workers may take to end by themselves before they are killed.
        closes: Where given, a deadline for each environment that workers close before they end.
    """

    def __init__(
        self,
        request_stop: Callable[[], None],
        torch_threads: int = 1,
        grace_s: float = GRACE_S,
        closes: Closes | None = None,
    ) -> None:
        self._torch_threads = torch_threads
        self._children: dict[str, _Child] = {}
        self._lifeline_read, lifeline = pipe()
        for end in (self._lifeline_read, lifeline):
            close_in_forks(end)
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), self._children, request_stop, lifeline, (grace_s, closes)
        )
        # Before multiprocessing's own exit handler, which would wait for the workers for ever.
        atexit.register(self._finalizer)

    def start(self, name: str, target: Callable[..., None], *args: Any) -> None:  # noqa: ANN401
        """Start a worker that runs ``target(*args)`` and is called ``name`` in every message.

        Raises:
            FastrlError: The system has no descriptors, processes or memory left for it; or this
                is a worker's worker, which would go on for ever.
        """
        if depth() >= _DEEPEST:
            raise FastrlError(
                "workers start workers that start workers: the modules that env.id, env.wrappers "
                "and model.class_path name are imported in every worker; what they run when they "
                "are imported belongs under if __name__ == '__main__'"
            )
        receive, send = pipe()
        with contextlib.closing(send):
            rest = (send, self._lifeline_read, self._torch_threads, depth() + 1)
            self._children[name] = _Child(started(name, target, args, *rest), receive)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name."""
        # A copy, as another thread may ask while workers are replaced.
        return {name: child.process.pid or 0 for name, child in dict(self._children).items()}

    def check(self) -> None:
        """Return if every worker is alive and well; cheap enough for every wait.

        Raises:
            WorkerError: One raised, was killed, or ended by itself.
        """
        for name in self._failed():
            raise _error_of(name, self._children[name])

    def receive(self, connection: Connection, timeout_s: float, late: WorkerError) -> Any:  # noqa: ANN401
        """Return what a worker sends through a pipe.

        Args:
            connection: The end to receive from.
            timeout_s: How long to wait.
            late: Raised if nothing came in time.

        Raises:
            WorkerError: A worker raised or ended, or nothing came in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # In this order: what a worker sent before it ended counts.
            failed = self._failed()
            if connection.poll(0.0 if failed else _SLICE_S):
                with contextlib.suppress(EOFError, OSError):
                    return connection.recv()
            for name in failed:
                raise _error_of(name, self._children[name])
        raise late

    def failures(self) -> list[WorkerError]:
        """Forget every worker that raised, was killed or ended by itself; return why it did.

        Another one may be started under its name. What is returned first is likelier the cause.
        """
        return [self._bury(name) for name in self._failed()]

    def kill(self, name: str) -> None:
        """End a worker and what it has started at once, and forget it."""
        process = self._children[name].process
        started_by_it = descendants_of([process.pid or 0])
        _kill(process)
        self._bury(name)
        end_all(started_by_it)

    def _failed(self) -> list[str]:
        """Return who has ended, or is about to."""
        # The report ends with the worker, but for one whose own children have inherited it; and a
        # worker that has reported may still be waiting for its threads.
        watched: dict[Any, str] = {}
        for name, child in self._children.items():
            watched |= {child.report: name, child.process.sentinel: name}
        ready = {watched[each] for each in connection.wait(watched, timeout=0)}
        # One failure often brings down others: those that still have something to say come first.
        return sorted(ready, key=lambda name: not _last_words(self._children[name]))

    def _bury(self, name: str) -> WorkerError:
        child = self._children.pop(name)
        error = _error_of(name, child)
        _collect(child)
        return error

    def stop(self) -> None:
        """End every worker, within the grace time and a moment; safe to call twice."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def call_in_child(
    function: Callable[[], Any],
    timeout_s: float,
    close_timeout_s: float | None = None,
    close_key: str = "env.close_timeout_s",
) -> Any:  # noqa: ANN401
    """Return ``function()``, evaluated in a short-lived process.

    If that is a context manager, what it gives is returned; the process leaves it afterwards, and
    is killed if that takes too long.

    Args:
        function: Travels to the process by value.
        timeout_s: How long it may take.
        close_timeout_s: How long the process may take to leave the context manager, in which it
            closes an environment; a process that is killed is named in the log then. By default
            `GRACE_S`, without a word.
        close_key: What users call this deadline.

    Raises:
        FastrlError: What the function raised, if it was one of fastrl's own errors.
        WorkerError: It raised something else, or did not finish in time.
    """
    receive, send = pipe()
    outcomes: list[Any] = []
    closes = None
    if close_timeout_s is not None:
        # What follows the outcome is the close.
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


def _last_words(child: _Child) -> tuple[str, str] | None:
    """Return (summary, traceback) of a worker that raised."""
    if child.last_words is None:
        # Unpickling fails in as many ways as there are ends of a process in mid-sentence.
        with contextlib.suppress(Exception):
            if child.report.poll():
                child.last_words = child.report.recv()
    return child.last_words


def _error_of(name: str, child: _Child) -> WorkerError:
    words = _last_words(child)
    child.process.join(GRACE_S)
    if words is not None:
        summary, remote = words
        return WorkerError(name, f"{name} failed: {summary}", remote)
    code = child.process.exitcode
    if code is not None and code < 0:
        return WorkerError(name, f"{name} was killed by {_signal_name(-code)}")
    return WorkerError(name, f"{name} ended unexpectedly with exit code {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time ones have no names
        return f"signal {number}"


def _end(
    owner: int,
    children: dict[str, _Child],
    request_stop: Callable[[], None],
    lifeline: Connection,
    limits: tuple[float, Closes | None],
) -> None:
    """Ask, wait, kill, collect; but in a fork of the owner, whose workers they are not."""
    if os.getpid() != owner:
        return
    pids = [child.process.pid or 0 for child in children.values()]
    started_by_them = descendants_of(pids)
    try:
        request_stop()
        _wait(children, *limits)
    finally:
        # In any case: an impatient user's second Ctrl-C may break off the wait.
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


def _wait(children: dict[str, _Child], grace_s: float, closes: Closes | None) -> None:
    """Wait for all to end, as long as each of them may take."""
    since = {name: (0, time.monotonic()) for name in children}
    while since:
        for name, (begun, begun_s) in list(since.items()):
            if not children[name].process.is_alive():
                del since[name]
                continue
            now = 0 if closes is None else closes.begun(name)
            limit_s = closes.timeout_s if closes is not None and now else grace_s
            if now != begun:
                since[name] = (now, time.monotonic())
            elif time.monotonic() - begun_s >= limit_s:
                del since[name]
                if closes is not None and now:
                    _LOGGER.warning(
                        "%s did not close an environment within %g s, and was ended with all that "
                        "it had started; raise %s if it needs to",
                        name,
                        limit_s,
                        closes.key,
                    )
        if since:  # it would wait for nothing as long
            sentinels: list[Any] = [children[name].process.sentinel for name in since]
            connection.wait(sentinels, timeout=_SLICE_S)


def _kill(process: Process) -> None:
    # Looked at first: the number of one that has ended may be another's by now.
    if process.is_alive():
        process.kill()


def _collect(child: _Child) -> None:
    """Free what is held of a worker, which has ended or is made to."""
    _kill(child.process)
    child.process.join(_KILLED_S)
    child.report.close()
    # A process that hangs in the kernel cannot be collected; it has the signal already.
    with contextlib.suppress(ValueError):
        child.process.close()
