"""Calls into environments that overlap, and what becomes of them when one fails, hangs or ends."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError

from fastrl.vector.daemon_threads import DaemonThreads
from fastrl.vector.failures import (
    NOT_FINITE,
    EnvFailure,
    EnvTimeoutError,
    brief,
    is_finite_action,
    summary,
)

CLOSE_S = 2.0
"""How long environments may take to close before they are left behind."""

Task = asyncio.Task[Any]


class Overlap:
    """Calls all environments at once, and closes them where that leaves one undefined.

    Args:
        envs: The environments.
        name: What messages call them.
        timeout_s: How long any one call may take.

    Attributes:
        seeds: The last seed of every environment.
        closed: Whether they were closed, or ended by a failure.
    """

    def __init__(self, envs: Sequence[Any], name: str, timeout_s: float) -> None:
        self._envs, self._name, self._timeout_s = envs, name, timeout_s
        self.seeds: list[int | None] = [None] * len(envs)
        self.closed = False
        self._why = ""
        self._pending = ""
        self._threads = DaemonThreads()
        self._tasks: set[Task] = set()
        self._closing: asyncio.Future[Any] | None = None
        # In a dict, so that `close` can say that nothing is left to be closed.
        self._open = dict(enumerate(envs))
        self._finalizer = weakref.finalize(self, _leave, self._open, self._threads)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Refuse another step or reset while this one is under way.

        Raises:
            AlreadyPendingCallError: One is.
            ClosedEnvironmentError: The environments are closed.
        """
        self.check_open()
        if self._pending:
            raise AlreadyPendingCallError(
                f"`{name}`: a call to `{self._pending}` is pending", self._pending
            )
        self._pending = name
        try:
            yield
        finally:
            self._pending = ""

    async def one(self, index: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what a method of an environment returns, be it a coroutine function or not."""
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        found = await self._threads.run(index, lambda: function(*args, **kwargs))
        return await found if inspect.isawaitable(found) else found

    async def step_or_reset(
        self,
        calls: Mapping[int, Awaitable[Any]],
        doing: str,
        actions: Sequence[Any] | None = None,
    ) -> dict[int, Any]:
        """Return what some environments return, by index.

        Raises:
            EnvFailure: One raised or overran the deadline; all are closed then.
            ClosedEnvironmentError: They were closed meanwhile.
        """
        try:
            done = await self._all(calls, asyncio.FIRST_EXCEPTION)
            for index, task in done.items():
                if (error := _error(task)) is not None:
                    raise self._failure(
                        index, f"raised {summary(error)}", doing, actions
                    ) from error
            self._check_in_time(done, doing, actions)
        except BaseException as error:
            failed = isinstance(error, EnvFailure)
            self._end(brief(error, 200) if failed else f"an interrupted {doing}")
            raise
        return {index: task.result() for index, task in done.items()}

    async def ask(self, calls: Mapping[int, Awaitable[Any]]) -> list[Any]:
        """Return what all environments return; an error of one harms none.

        Raises:
            EnvTimeoutError: One overran the deadline; all are closed then.
            ClosedEnvironmentError: They were closed meanwhile.
        """
        done = await self._all(calls, asyncio.ALL_COMPLETED)
        try:
            self._check_in_time(done, "call", None)
        except EnvFailure as failure:
            self._end(brief(failure, 200))
            raise
        for index, task in done.items():
            if (error := _error(task)) is not None:
                error.add_note(f"raised by env {index} of '{self._name}'")
                raise error
        return [task.result() for task in done.values()]

    def check_open(self) -> None:
        """Return if the environments are open.

        Raises:
            ClosedEnvironmentError: They are not; says after what.
        """
        if self.closed:
            why = f" after {self._why}" if self._why else ""
            raise ClosedEnvironmentError(f"the environments were closed{why}")

    async def close(self) -> None:
        """Close all environments; those that do not end within two seconds are left behind."""
        self._end("")
        closing, self._closing = self._closing, None
        # What began in another event loop went on in the threads, or ended with that loop.
        if closing is not None and closing.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([closing], timeout=CLOSE_S)
        self._threads.stop()

    async def _all(self, calls: Mapping[int, Awaitable[Any]], until: str) -> dict[int, Task]:
        """Return the tasks of all calls, when the deadline has come at the latest."""
        tasks = {index: asyncio.ensure_future(call) for index, call in calls.items()}
        self._tasks.update(tasks.values())
        for task in tasks.values():
            task.add_done_callback(_heard)
        try:
            await asyncio.wait(tasks.values(), timeout=self._timeout_s, return_when=until)
        finally:
            self._tasks.difference_update(tasks.values())
            late = [task for task in tasks.values() if not task.done()]
            for task in late:
                task.cancel()
        self.check_open()
        return tasks

    def _check_in_time(
        self, tasks: dict[int, Task], doing: str, actions: Sequence[Any] | None
    ) -> None:
        for index, task in tasks.items():
            if not task.done():
                what = f"did not answer within {self._timeout_s:g} s"
                raise self._failure(index, what, doing, actions, EnvTimeoutError)

    def _end(self, why: str) -> None:
        """Begin to close all environments, and wake who waits for them."""
        if self.closed:
            return
        self.closed, self._why = True, why
        for task in self._tasks:
            task.cancel()
        envs = list(self._open.items())
        self._open.clear()
        closing = [self.one(index, env.close) for index, env in envs]
        self._closing = asyncio.gather(*closing, return_exceptions=True)

    def _failure(
        self,
        index: int,
        what: str,
        doing: str,
        actions: Sequence[Any] | None,
        kind: type[EnvFailure] = EnvFailure,
    ) -> EnvFailure:
        seed = self.seeds[index]
        action = None if actions is None else actions[index]
        given = "" if actions is None else f"(action={brief(action)})"
        told = f"last seed {seed}" if seed is not None else "never seeded"
        fault = "" if is_finite_action(action) else NOT_FINITE
        return kind(
            f"env {index} of '{self._name}' ({told}) {what}, in {doing}{given}{fault}",
            worker="event-loop",
            env_index=index,
            action=action,
            seed=seed,
        )


def _error(task: Task) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _heard(task: Task) -> None:
    """Take note of an error, of which asyncio would say that nobody did."""
    _error(task)


def _leave(envs: dict[int, Any], threads: DaemonThreads) -> None:
    """Close what nobody refers to any more, as far as that needs no event loop."""
    for index, env in envs.items():
        if not inspect.iscoroutinefunction(env.close):
            threads.leave(index, env.close)
    threads.stop()
