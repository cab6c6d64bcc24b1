"""Threads that answer to an event loop, and that no hanging environment can keep a program with."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from typing import Any

from fastrl.workers.descent import start_thread

_Outcome = tuple[Any, BaseException | None]
"""A result or an error, which no future can hold if it is a StopIteration."""
_Task = tuple[Callable[[], Any], "asyncio.Future[_Outcome] | None"]


class DaemonThreads:
    """Threads by index, each started when it first has something to do.

    Unlike those of an executor they do not hold up the end of the program.
    """

    def __init__(self) -> None:
        self._inboxes: dict[int, queue.SimpleQueue[_Task | None]] = {}

    async def run(self, index: int, function: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return what thread ``index`` makes of a function, after those it was given before."""
        future: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        inbox = self._inboxes.get(index)
        if inbox is None:
            inbox = queue.SimpleQueue()
            start_thread(f"env-{index}", _serve, inbox)
            self._inboxes[index] = inbox
        inbox.put((function, future))
        result, error = await future
        if error is not None:
            raise error
        return result

    def leave(self, index: int, function: Callable[[], Any]) -> None:
        """Let thread ``index`` run a function for whose outcome nobody waits, or run it here."""
        inbox = self._inboxes.get(index)
        if inbox is not None:
            inbox.put((function, None))
        else:
            with contextlib.suppress(Exception):
                function()

    def stop(self) -> None:
        """Let every thread end after what it is doing."""
        for inbox in self._inboxes.values():
            inbox.put(None)


def _serve(inbox: queue.SimpleQueue[_Task | None]) -> None:
    while (task := inbox.get()) is not None:
        function, future = task
        outcome: _Outcome
        try:
            outcome = function(), None
        except BaseException as error:  # an environment may also end the program, by sys.exit()
            outcome = None, error
        if future is None:
            continue
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_finish, future, outcome)


def _finish(future: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    if not future.cancelled():
        future.set_result(outcome)
