"""Environments for ``await``: their calls overlap in one event loop, or in threads.

For environments whose ``step``, ``reset`` or ``render`` are coroutines, and for programs that do
other work meanwhile (a learner, a server, a window on the screen).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode

from fastrl.envs.rows import step_values
from fastrl.errors import ArgumentError
from fastrl.vector.driver import STEP, Request, SerialDriver
from fastrl.vector.exchange import splitter
from fastrl.vector.failures import EnvFailure, late, raised
from fastrl.vector.groups import EnvGroup, attribute, check_call, set_attribute
from fastrl.vector.infos import Infos, copied
from fastrl.vector.thread_driver import DaemonThread
from fastrl.vector.vector_env import FastVectorEnv, StepResult
from fastrl.vector.vector_plan import VectorPlan

CLOSE_S = 2.0
"""Seconds after which environments that do not close are abandoned."""
_OF_VECTOR = (
    *("action_space", "closed", "metadata", "observation_space", "render_mode", "spec"),
    *("single_action_space", "single_observation_space"),
)


class ConcurrentEnvs:
    """Environments whose calls overlap; every method that calls them must be awaited.

    A method of an environment may be a coroutine function, which runs in the caller's event loop,
    or a plain one, which runs in a thread. If all are coroutines, no thread is started.

    A step or reset that fails, overruns the deadline or is cancelled closes all environments, since
    some would be a step ahead of others, as in `fastrl.make_vec`. An error in `call`, `parallel` or
    `set_attr` is raised unchanged, and the environments stay open.

    Attributes:
        envs: The environments.
        num_envs: Number of environments.
        autoreset: Mode in which the next episode begins.
        single_observation_space: Observation space of one environment.
        single_action_space: Action space of one environment.
        observation_space: Observation space of all environments.
        action_space: Action space of all; ``action_space.sample()`` returns a batch.
        metadata: Metadata of the first environment, and ``autoreset_mode``.
        render_mode: Render mode of the first environment; None without one.
        spec: Gymnasium's specification of the first environment, None without one.
        closed: Whether the environments were closed, by `close` or by a failure.
        timeout_s: Deadline of each call in seconds.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        *,
        autoreset: AutoresetMode = AutoresetMode.NEXT_STEP,
        timeout_s: float = 120.0,
        name: str = "",
    ) -> None:
        """Take over ``envs``, gymnasium's or similar ones with coroutines; `close` closes them."""
        if not envs:
            raise ArgumentError("there must be at least one environment")
        self.envs, self.num_envs, self.autoreset = list(envs), len(envs), autoreset
        self.timeout_s = timeout_s
        self._name = name or type(envs[0]).__name__
        self._driver = _AwaitDriver(self.envs, self._name, autoreset)
        self._vector = FastVectorEnv(self._driver.plan, self._driver, "serial")

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Infos]:
        """Start an episode in every environment, or in some; see `FastVectorEnv.reset`.

        Raises:
            ArgumentError: Seeds or mask are invalid; no environment was reset.
            EnvFailure: An environment raised or overran the deadline; all are closed.
        """
        self._vector.reset_async(seed, options)
        await self._driver.wait(self.timeout_s)
        return self._vector.reset_wait()

    async def step(self, actions: Any) -> StepResult:
        """Step all environments at once; see `FastVectorEnv.step`.

        Raises:
            ArgumentError: The actions are invalid; no environment was stepped.
            EnvFailure: An environment raised or overran the deadline; all are closed.
        """
        self._vector.step_async(actions)
        await self._driver.wait(self.timeout_s)
        return self._vector.step_wait()

    async def render(self) -> tuple[Any, ...]:
        """Return the frame of every environment."""
        return await self.call("render")

    async def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute."""
        check_call(name, "all environments")
        return await self.parallel(partial(attribute, name=name, args=args, kwargs=kwargs))

    async def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return await self.call(name)

    async def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment; see `FastVectorEnv.set_attr`."""
        await self.parallel(partial(set_attribute, name=name), values)

    async def parallel(
        self,
        function: Callable[[Any, Any], Any],
        arguments: Any = None,
    ) -> tuple[Any, ...]:
        """Return ``function(env, argument)`` for every environment, evaluated concurrently.

        Args:
            function: A plain function or a coroutine function.
            arguments: As in `FastVectorEnv.parallel`.

        Raises:
            ArgumentError: There is not one argument per environment.
            EnvTimeoutError: An environment overran the deadline; all are closed.
        """
        self._check_open()
        given = self._vector._spread(arguments, "arguments")

        async def one(index: int) -> Any:
            # Called in the task, so that a pending step comes first.
            return await self._driver.call(index, function, self.envs[index], given[index])

        tasks = {index: asyncio.ensure_future(one(index)) for index in range(self.num_envs)}
        await self._driver.all_of(tasks, self.timeout_s, asyncio.ALL_COMPLETED)
        self._check_open()
        with self._vector._explaining("call"):
            self._driver.check_in_time(tasks, self.timeout_s)
        for index, task in tasks.items():
            if (error := _error(task)) is not None:
                error.add_note(f"raised by env {index} of '{self._name}'")
                raise error
        return tuple(task.result() for task in tasks.values())

    def seed(self, seeds: int | Sequence[int | None]) -> None:
        """Use these seeds in the next `reset` without seeds."""
        self._vector.seed(seeds)

    async def close(self) -> None:
        """Close all environments; those that take longer than two seconds are abandoned.

        A pending step raises gymnasium's ``ClosedEnvironmentError``.
        """
        self._vector.close()
        await self._driver.closed()

    async def __aenter__(self) -> ConcurrentEnvs:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all environments."""
        await self.close()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of every environment, or a function that calls a method of all."""
        if name.startswith("_") or "envs" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        if name in _OF_VECTOR:
            return getattr(self._vector, name)
        found = tuple(attribute(env, name=name) for env in self.envs)
        return partial(self.call, name) if all(map(callable, found)) else found

    def _check_open(self) -> None:
        if self.closed:
            self._vector.call_wait()  # raises, with the reason why they are closed


Tasks = Mapping[int, "asyncio.Future[Any]"]
Outcome = tuple[Any, BaseException | None]
"""A result or an error; futures cannot hold a StopIteration."""


class _AwaitDriver(SerialDriver):
    """Awaits steps and resets of all environments, then passes the results to the serial step loop.

    Between `begin` and `end` the caller awaits `wait`.
    """

    worker = "event-loop"

    def __init__(self, envs: Sequence[Any], name: str, autoreset: AutoresetMode) -> None:
        self._awaited = [_Awaited(env) for env in envs]
        self._threads = [DaemonThread(f"fastrl-env-{index}") for index in range(len(envs))]
        self._tasks: dict[int, asyncio.Future[Any]] = {}
        self._all_tasks: set[asyncio.Future[Any]] = set()
        self._error: BaseException | None = None
        self._open = list(enumerate(envs))
        self._closing: asyncio.Future[Any] | None = None
        try:
            super().__init__(VectorPlan(name, (), len(envs), 1, autoreset), self._awaited)
        except EnvFailure as failure:
            raise failure.__cause__ or failure from None

    def begin(self, request: Request) -> None:
        """Begin a step or a reset, the only requests of `ConcurrentEnvs`."""
        super().begin(request)
        if request.method == STEP:
            split = splitter(self.spec.action_space, self.exchange.action)
            calls = {index: self._step_one(index, action) for index, action in enumerate(split())}
        else:
            (_, options), (seeds, mask) = request.common, request.per_env
            calls = {
                index: self._reset_one(index, seeds[index], options)
                for index, chosen in enumerate(mask)
                if chosen
            }
        self._tasks = {index: asyncio.ensure_future(call) for index, call in calls.items()}

    def end(self, timeout_s: float) -> list[Any]:
        """Pass the results to the step loop."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return super().end(timeout_s)

    async def wait(self, timeout_s: float) -> None:
        """Await the pending request; `end` raises its error, if any."""
        tasks, self._tasks = self._tasks, {}
        try:
            await self.all_of(tasks, timeout_s, asyncio.FIRST_EXCEPTION)
            for index, task in tasks.items():
                if (error := _error(task)) is not None:
                    raise raised(error, self.worker, index) from error
            self.check_in_time(tasks, timeout_s)
        except BaseException as error:  # the cancellation of the caller included
            self._error = error

    async def all_of(self, tasks: Tasks, timeout_s: float, until: str) -> None:
        """Await tasks until the deadline, or until `close`; cancel late ones."""
        self._all_tasks.update(tasks.values())
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=timeout_s, return_when=until)
        finally:
            self._all_tasks.difference_update(tasks.values())
            for task in tasks.values():
                task.add_done_callback(_error)  # otherwise asyncio logs an unread error
                task.cancel()

    def check_in_time(self, tasks: Tasks, timeout_s: float) -> None:
        """Raise the error of the first task that is not done."""
        for index, task in tasks.items():
            if task.cancelled() or not task.done():
                raise late(timeout_s, self.worker, index)

    def call(
        self,
        index: int,
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Begin a plain function of an environment in its thread, or return its coroutine."""
        if inspect.iscoroutinefunction(function):
            return function(*args, **kwargs)  # type: ignore[no-any-return]
        return _in_thread(self._threads[index], partial(function, *args, **kwargs))

    def close(self) -> None:
        """Begin to close all environments; coroutines are closed only if an event loop runs."""
        super().close()
        for task in self._all_tasks:
            task.cancel()
        environments, self._open = self._open, []  # so that nothing is closed twice
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            for index, env in environments:
                if not inspect.iscoroutinefunction(env.close):
                    self._threads[index].submit_or_run(partial(_close_quietly, env))
        else:
            closing = [self.call(index, env.close) for index, env in environments]
            self._closing = asyncio.gather(*closing, return_exceptions=True)
        for thread in self._threads:
            thread.stop()

    async def closed(self) -> None:
        """Wait at most `CLOSE_S` until the environments are closed."""
        closing, self._closing = self._closing, None
        # Calls of another event loop continue in threads, or were cancelled with that loop.
        if closing is not None and closing.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([closing], timeout=CLOSE_S)

    async def _step_one(self, index: int, action: Any) -> None:
        mode, awaited, group = self.plan.autoreset, self._awaited[index], self._group
        if isinstance(group, EnvGroup) and group.is_over(index):
            if mode is AutoresetMode.NEXT_STEP:
                await self._reset_one(index)
            return  # if the caller must reset, the step loop raises
        result = step_values(await self.call(index, awaited.env.step, action), index)
        observation, reward, terminated, truncated, info = result
        if (terminated or truncated) and mode is AutoresetMode.SAME_STEP:
            # Copies: the environment may write the next ones into the same objects.
            result = copy.deepcopy(observation), reward, terminated, truncated, copied(info)
            await self._reset_one(index)
        awaited.step_result = result

    async def _reset_one(
        self, index: int, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        awaited = self._awaited[index]
        given = None if options is None else dict(options)
        awaited.reset_result = await self.call(index, awaited.env.reset, seed=seed, options=given)


class _Awaited:
    """An environment whose step and reset return results that were awaited before."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.unwrapped = getattr(env, "unwrapped", env)
        self.metadata = getattr(env, "metadata", None) or {}
        self.render_mode, self.spec = getattr(env, "render_mode", None), getattr(env, "spec", None)
        self.step_result: Any = None
        self.reset_result: Any = None

    def reset(self, *, seed: int | None, options: Mapping[str, Any] | None) -> Any:
        return self.reset_result

    def step(self, action: Any) -> Any:
        return self.step_result

    def close(self) -> None:
        """Do nothing: `_AwaitDriver` closes the environment."""

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def _in_thread(thread: DaemonThread, function: Callable[[], Any]) -> Coroutine[Any, Any, Any]:
    """Start a function in a thread; return an awaitable of its result, or of its coroutine's."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def deliver(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        outcome: Outcome
        try:
            outcome = function(), None
        except BaseException as error:  # SystemExit included
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the event loop may be closed by now
            loop.call_soon_threadsafe(deliver, outcome)

    async def result() -> Any:
        found, error = await future
        if error is not None:
            raise error
        return await found if inspect.isawaitable(found) else found

    thread.submit(work)
    return result()


def _error(task: asyncio.Future[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _close_quietly(env: Any) -> None:
    with contextlib.suppress(BaseException):
        env.close()
