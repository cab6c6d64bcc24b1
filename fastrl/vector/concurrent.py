"""Environments for ``await``: calls that wait overlap in one thread, or in a pool of threads.

For environments whose ``step``, ``reset`` or ``render`` are coroutines, and for programs that have
something else to do in the meantime (a learner's own work, a server, a picture on the screen).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from fastrl.vector.daemon_threads import DaemonThreads
from fastrl.vector.failures import ArgumentError, EnvFailure, EnvTimeoutError, brief, summary
from fastrl.vector.infos import Infos, combine, gather
from fastrl.vector.seeds import checked_seeds

StepResult = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]


class ConcurrentEnvs:
    """Environments whose calls overlap; every method that asks them anything is to be awaited.

    A method of an environment may be a coroutine function, which runs in the caller's event loop,
    or a plain one, which runs in a thread. Where all are coroutines no thread is started.

    Attributes:
        envs: The environments.
        num_envs: How many.
        autoreset: When the next episode begins where one ended.
        single_observation_space: Of one environment.
        single_action_space: Of one environment.
        observation_space: Of all.
        action_space: Of all; ``action_space.sample()`` gives a batch.
        metadata: What the first environment tells, and ``autoreset_mode``.
        timeout_s: How long any one call may take.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        *,
        autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
        timeout_s: float = 120.0,
        name: str = "",
    ) -> None:
        """Take over ``envs``, gymnasium's or alike with coroutines, which `close` closes."""
        if not envs:
            raise ArgumentError("there must be at least one environment")
        first = envs[0]
        self.envs, self.num_envs, self.autoreset = list(envs), len(envs), autoreset
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        self.metadata = {**(first.metadata or {}), "autoreset_mode": autoreset}
        self.timeout_s = timeout_s
        self._name = name or type(first).__name__
        self._threads = DaemonThreads()
        self._ended: set[int] = set()
        self._seeds: list[int | None] = [None] * self.num_envs
        self._next_seeds: list[int | None] | None = None
        self._closed = False

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Infos]:
        """Start an episode in every environment, all at once.

        Args:
            seed: One for each, or the first of consecutive ones; None for those of `seed`, or for
                none.
            options: Handed to every environment.

        Raises:
            ArgumentError: There is not one seed per environment.
            EnvFailure: An environment raised or overran the deadline.
        """
        self._check_open()
        seeds = checked_seeds(seed, self.num_envs)
        if seed is None and self._next_seeds is not None:
            seeds, self._next_seeds = self._next_seeds, None
        self._seeds = [
            new if new is not None else old for new, old in zip(seeds, self._seeds, strict=True)
        ]
        self._ended.clear()
        given = None if options is None else dict(options)
        results = await self._all(
            [
                self._call(index, env.reset, seed=each, options=given)
                for index, (env, each) in enumerate(zip(self.envs, seeds, strict=True))
            ],
            "reset",
        )
        infos = {index: info for index, (_, info) in enumerate(results) if info}
        return self._batch([seen for seen, _ in results]), combine([gather(infos)], self.num_envs)

    async def step(self, actions: Any) -> StepResult:  # noqa: ANN401
        """Step every environment once, all at once.

        Args:
            actions: A sample of ``action_space``.

        Raises:
            ArgumentError: There is not one action per environment.
            EnvFailure: An environment raised or overran the deadline.
        """
        self._check_open()
        given = list(iterate(self.action_space, actions))
        if len(given) != self.num_envs:
            raise ArgumentError(f"got {len(given)} actions for {self.num_envs} environments")
        results = await self._all(
            [self._step_one(index, action) for index, action in enumerate(given)],
            "step",
            given,
        )
        infos = {index: info for index, (*_, info) in enumerate(results) if info}
        return (
            self._batch([result[0] for result in results]),
            np.array([result[1] for result in results], np.float64),
            np.array([result[2] for result in results], np.bool_),
            np.array([result[3] for result in results], np.bool_),
            combine([gather(infos)], self.num_envs),
        )

    async def render(self) -> tuple[Any, ...]:
        """Return the picture of every environment."""
        return await self.call("render")

    async def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """Call a method of every environment, or read an attribute."""
        return await self.parallel(lambda env, _: _attribute(env, name, args, kwargs))

    async def parallel(
        self,
        function: Callable[[Any, Any], Any],
        arguments: Any = None,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        """Return ``function(env, argument)`` for every environment, evaluated all at once.

        Args:
            function: Plain, or a coroutine function.
            arguments: A list or tuple holds one per environment, anything else is for all.
        """
        self._check_open()
        given = arguments if isinstance(arguments, list | tuple) else [arguments] * self.num_envs
        if len(given) != self.num_envs:
            raise ArgumentError(f"arguments: got {len(given)} for {self.num_envs} environments")
        pairs = enumerate(zip(self.envs, given, strict=True))
        calls = [self._call(index, function, env, each) for index, (env, each) in pairs]
        return tuple(await self._all(calls, "call"))

    def seed(self, seeds: int | Sequence[int | None]) -> None:
        """Use these seeds in the next `reset` that is not given any."""
        self._next_seeds = checked_seeds(seeds, self.num_envs)

    async def close(self) -> None:
        """Close all environments; those that do not end within two seconds are left behind."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.gather(
            *(self._call(index, env.close) for index, env in enumerate(self.envs)),
            return_exceptions=True,
        )
        try:
            await asyncio.wait_for(closing, 2.0)
        except TimeoutError:
            pass
        finally:
            self._threads.stop()

    async def __aenter__(self) -> ConcurrentEnvs:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all environments."""
        await self.close()

    def __getattr__(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        if name.startswith("_") or "envs" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return tuple(_attribute(env, name, None, {}) for env in self.envs)

    async def _step_one(self, index: int, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:  # noqa: ANN401
        env = self.envs[index]
        if index in self._ended:
            self._ended.discard(index)
            observation, info = await self._call(index, env.reset)
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = await self._call(index, env.step, action)
        if not (terminated or truncated) or self.autoreset is AutoresetMode.DISABLED:
            return observation, reward, terminated, truncated, info
        if self.autoreset is AutoresetMode.NEXT_STEP:
            self._ended.add(index)
            return observation, reward, terminated, truncated, info
        final = {"final_obs": observation, "final_info": info}
        observation, info = await self._call(index, env.reset)
        return observation, reward, terminated, truncated, {**final, **info}

    async def _call(
        self,
        index: int,
        function: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        found = await self._threads.run(index, lambda: function(*args, **kwargs))
        return await found if inspect.isawaitable(found) else found

    async def _all(
        self,
        calls: Sequence[Coroutine[Any, Any, Any]],
        doing: str,
        actions: Sequence[Any] | None = None,
    ) -> list[Any]:
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            done, late = await asyncio.wait(
                tasks, timeout=self.timeout_s, return_when=asyncio.FIRST_EXCEPTION
            )
            for index, task in enumerate(tasks):
                if task in done and (error := task.exception()) is not None:
                    raise self._failure(
                        index, f"raised {summary(error)}", doing, actions
                    ) from error
            for index, task in enumerate(tasks):
                if task in late:
                    what = f"did not answer within {self.timeout_s:g} s"
                    raise self._failure(index, what, doing, actions, EnvTimeoutError)
        finally:
            for task in tasks:
                task.cancel()
        return [task.result() for task in tasks]

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("the environments were closed")

    def _failure(
        self,
        index: int,
        what: str,
        doing: str,
        actions: Sequence[Any] | None,
        kind: type[EnvFailure] = EnvFailure,
    ) -> EnvFailure:
        seed = self._seeds[index]
        action = None if actions is None else actions[index]
        given = "" if actions is None else f"(action={brief(action)})"
        told = f"last seed {seed}" if seed is not None else "never seeded"
        return kind(
            f"env {index} of '{self._name}' ({told}) {what}, in {doing}{given}",
            worker="event-loop",
            env_index=index,
            action=action,
            seed=seed,
        )

    def _batch(self, observations: Sequence[Any]) -> Any:  # noqa: ANN401
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs, np.zeros)
        return concatenate(self.single_observation_space, observations, empty)


def _attribute(env: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    look_up = getattr(env, "get_wrapper_attr", None)
    found = look_up(name) if look_up is not None else getattr(env, name)
    return found(*args, **kwargs) if callable(found) and args is not None else found
