"""Checks one environment before the start, with deadlines for each of its calls."""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from fastrl.closing import Closable
from fastrl.errors import USERS_FAILURES, cause
from fastrl.vector.failures import EnvTimeoutError
from fastrl.vector.spec import VectorPlan
from fastrl.workers.descent import start_thread

Found = TypeVar("Found")
_SLICE_S = 0.1
_LOGGER = logging.getLogger(__name__)


class Doing:
    """Which call of an environment is under way, and until when it may take.

    Args:
        plan: Has the deadlines.
    """

    def __init__(self, plan: VectorPlan) -> None:
        self._timeout_s = plan.timeout_s
        self._now = ("its constructor", plan.start_timeout_s, time.monotonic())

    def begin(self, call: str) -> None:
        """Note that a call such as ``reset()`` begins."""
        self._now = (call, self._timeout_s, time.monotonic())

    def overdue(self) -> str:
        """Return which call has overrun its deadline, in words; empty if none has."""
        call, timeout_s, began_s = self._now
        late = time.monotonic() > began_s + timeout_s
        return f"did not return from {call} within {timeout_s:g} s" if late else ""


def in_time(plan: VectorPlan, look: Callable[[Doing], AbstractContextManager[Found]]) -> Found:
    """Return what a look at an environment finds; it is made in a thread of its own.

    Threads cannot be killed: an environment that hangs is left behind, and ends with the process.

    Args:
        plan: Has the environment and the deadlines.
        look: Builds an environment, gives what was found, and closes it at the end of the block.

    Raises:
        EnvTimeoutError: A call overran its deadline; names it.
        Exception: What the look raises.
    """
    if sys.platform == "darwin" and plan.instance(0).factory.kwargs.get("render_mode") == "human":
        # Windows belong to the main thread there.
        with look(Doing(plan)) as found:
            return found
    doing = Doing(plan)
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            with look(doing) as found:
                outcome.put((found, None))
        except BaseException as error:  # SystemExit included: the caller has to hear of it
            outcome.put((None, error))

    thread = start_thread("fastrl-probe", run)
    found, error = _wait_for(outcome, doing)
    thread.join(plan.close_timeout_s)
    if error is not None:
        raise error
    if thread.is_alive():
        _LOGGER.warning(
            "env 0 of '%s' did not return from close() within %g s, and is left behind; raise "
            "close_timeout_s if it needs to",
            plan.name,
            plan.close_timeout_s,
        )
    return found  # type: ignore[no-any-return]


def close_probed(env: Closable, name: str) -> None:
    """Close an environment that is not needed any more; what it raises is logged."""
    try:
        env.close()
    except USERS_FAILURES as error:
        _LOGGER.warning("'%s' raised in close(): %s", name, cause(error))


def _wait_for(
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]], doing: Doing
) -> tuple[Any, BaseException | None]:
    while True:
        try:
            return outcome.get(timeout=_SLICE_S)
        except queue.Empty:
            if late := doing.overdue():
                raise EnvTimeoutError(late, worker="probe", env_index=0) from None
