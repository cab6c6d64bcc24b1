"""Builds and calls one environment before all are built, with a deadline for each of its calls."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import TypeVar

from fastrl.closing import Closable
from fastrl.errors import USERS_FAILURES, cause
from fastrl.vector.failures import EnvTimeoutError
from fastrl.vector.vector_plan import VectorPlan
from fastrl.workers.descent import start_thread

Found = TypeVar("Found")
_SLICE_S = 0.1
_LOGGER = logging.getLogger(__name__)


class CallDeadline:
    """Which call of an environment is under way, and its deadline.

    Args:
        plan: Has the deadlines.
    """

    def __init__(self, plan: VectorPlan) -> None:
        self._timeout_s = plan.timeout_s
        self._now = ("its constructor", plan.start_timeout_s, time.monotonic())

    def begin(self, call: str) -> None:
        """Note that a call such as ``reset()`` begins."""
        self._now = (call, self._timeout_s, time.monotonic())

    def check(self) -> None:
        """Raise an `EnvTimeoutError` that names the call if it has overrun its deadline."""
        call, timeout_s, began_s = self._now
        if time.monotonic() > began_s + timeout_s:
            late = f"did not return from {call} within {timeout_s:g} s"
            raise EnvTimeoutError(late, worker="probe", env_index=0)


def within_deadlines(
    plan: VectorPlan, look: Callable[[CallDeadline], AbstractContextManager[Found]]
) -> Found:
    """Build an environment in another thread, and return what ``look`` finds out about it.

    Threads cannot be killed: one whose environment hangs is abandoned, and ends with the process.

    Args:
        plan: Has the environment and the deadlines.
        look: A context that builds an environment, yields what it finds, and closes it.

    Raises:
        EnvTimeoutError: A call overran its deadline; names it.
        Exception: What ``look`` raises.
    """
    if sys.platform == "darwin" and plan.factories[0].kwargs.get("render_mode") == "human":
        # Windows belong to the main thread there.
        with look(CallDeadline(plan)) as found:
            return found
    deadline, outcome = CallDeadline(plan), Future[Found]()

    def run() -> None:
        try:
            with look(deadline) as found:
                outcome.set_result(found)
        except BaseException as error:  # SystemExit included: the caller must get it
            if not outcome.done():
                outcome.set_exception(error)

    thread = start_thread("fastrl-probe", run)
    while not wait([outcome], _SLICE_S).done:
        deadline.check()
    thread.join(plan.close_timeout_s)
    if thread.is_alive() and outcome.exception() is None:
        _LOGGER.warning(
            "env 0 of '%s' did not return from close() within %g s, and is left behind; raise "
            "close_timeout_s if it needs to",
            plan.name,
            plan.close_timeout_s,
        )
    return outcome.result()


def close_probed(env: Closable, name: str) -> None:
    """Close an environment that is not needed any more; what it raises is logged."""
    try:
        env.close()
    except USERS_FAILURES as error:
        _LOGGER.warning("'%s' raised in close(): %s", name, cause(error))
