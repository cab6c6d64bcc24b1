"""Threads that answer to an event loop, and that no hanging environment can keep a program with."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_Task = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class DaemonThreads:
    """Threads by index, each started when it first has something to do.

    Unlike those of an executor they do not hold up the end of the program.
    """

    def __init__(self) -> None:
        self._inboxes: dict[int, queue.SimpleQueue[_Task | None]] = {}

    def run(self, index: int, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Let thread ``index`` evaluate a function, after those it was given before."""
        future = asyncio.get_running_loop().create_future()
        inbox = self._inboxes.get(index)
        if inbox is None:
            inbox = self._inboxes[index] = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(inbox,), name=f"env-{index}", daemon=True).start()
        inbox.put((function, future))
        return future

    def stop(self) -> None:
        """Let every thread end after what it is doing."""
        for inbox in self._inboxes.values():
            inbox.put(None)


def _serve(inbox: queue.SimpleQueue[_Task | None]) -> None:
    while (task := inbox.get()) is not None:
        function, future = task
        result, error = None, None
        try:
            result = function()
        except Exception as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(_finish, future, result, error)


def _finish(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:  # noqa: ANN401
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
