"""Environments for ``await``: calls that wait overlap in one thread, or in a pool of threads.

For environments whose ``step``, ``reset`` or ``render`` are coroutines, and for programs that have
something else to do in the meantime (a learner's own work, a server, a picture on the screen).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.rows import ObservationWriter, number_of
from fastrl.errors import EnvError
from fastrl.spaces import leaves, unflatten
from fastrl.vector.action_rows import ActionObjects, ActionRows, splitter
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import ArgumentError
from fastrl.vector.infos import Infos, combine, gather, kept
from fastrl.vector.instance import is_lifecycle
from fastrl.vector.overlap import Overlap
from fastrl.vector.seeds import checked_mask, checked_options, checked_seeds
from fastrl.vector.spec import InstanceSpec

StepResult = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]
OneResult = tuple[float, bool, bool, dict[str, Any]]


class ConcurrentEnvs:
    """Environments whose calls overlap; every method that asks them anything is to be awaited.

    A method of an environment may be a coroutine function, which runs in the caller's event loop,
    or a plain one, which runs in a thread. Where all are coroutines no thread is started.

    A step or reset that fails, overruns the deadline or is cancelled leaves some environments a
    step ahead of others: it closes them all, as it does in `fastrl.make_vec`. An error in `call`,
    `parallel` or `set_attr` is raised as it is and harms nothing.

    Attributes:
        envs: The environments.
        num_envs: How many.
        autoreset: When the next episode begins where one ended.
        single_observation_space: Of one environment.
        single_action_space: Of one environment.
        observation_space: Of all.
        action_space: Of all; ``action_space.sample()`` gives a batch.
        metadata: What the first environment tells, and ``autoreset_mode``.
        render_mode: Of the first environment, None where nothing is drawn.
        spec: Gymnasium's specification of the first environment, None where it has none.
        timeout_s: How long any one call may take.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        *,
        autoreset: AutoresetMode = AutoresetMode.NEXT_STEP,
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
        self.metadata = {**(getattr(first, "metadata", None) or {}), "autoreset_mode": autoreset}
        self.render_mode, self.spec = (
            getattr(first, "render_mode", None),
            getattr(first, "spec", None),
        )
        self.timeout_s = timeout_s
        name = name or type(first).__name__
        spec = InstanceSpec(name, first.observation_space, first.action_space)
        self._claim = Claim()
        for index, env in enumerate(self.envs):
            self._claim.add(env, index)
            check_spaces(env, spec, f"env {index} of '{name}'")
        self._overlap = Overlap(self.envs, name, timeout_s)
        self._boundary = _Boundary(spec, self.num_envs)
        self._ended: set[int] = set()
        self._next_seeds: list[int | None] | None = None
        self._was_reset = False

    @property
    def closed(self) -> bool:
        """Whether they were closed, or ended by a failure."""
        return self._overlap.closed

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Infos]:
        """Start an episode in every environment, or in some, all at once.

        Args:
            seed: One for each, or the first of consecutive ones; None for those of `seed`, or for
                none.
            options: Handed to every environment. ``reset_mask``, ``[num_envs]`` bool, is taken
                out: it names the environments to reset.

        Raises:
            ArgumentError: Seeds or mask do not fit; no environment was reset.
            EnvFailure: An environment raised or overran the deadline; all are closed.
        """
        with self._overlap.alone("reset"):
            seeds = checked_seeds(seed, self.num_envs)
            given = checked_options(options)
            mask = checked_mask(given, self.num_envs, was_reset=self._was_reset)
            chosen = np.flatnonzero(mask).tolist()
            if seed is None and self._next_seeds is not None:
                seeds, self._next_seeds = self._next_seeds, None
            for index in chosen:
                if seeds[index] is not None:
                    self._overlap.seeds[index] = seeds[index]
            self._ended.difference_update(chosen)
            results = await self._overlap.step_or_reset(
                {index: self._reset_one(index, seeds[index], given) for index in chosen}, "reset"
            )
            self._was_reset = True
            infos = {index: info for index, info in results.items() if info}
            return self._boundary.observations(), combine([gather(infos)], self.num_envs)

    async def step(self, actions: Any) -> StepResult:  # noqa: ANN401
        """Step every environment once, all at once.

        Args:
            actions: A sample of ``action_space``: arrays, lists, or tensors of torch.

        Raises:
            ArgumentError: The actions do not fit; no environment was stepped.
            EnvFailure: An environment raised or overran the deadline; all are closed.
        """
        with self._overlap.alone("step"):
            if not self._was_reset:
                raise ArgumentError("reset the environments before the first step")
            given = self._boundary.each(actions)
            calls = {index: self._step_one(index, action) for index, action in enumerate(given)}
            results = await self._overlap.step_or_reset(calls, "step", given)
            reward, terminated, truncated, infos = zip(*results.values(), strict=True)
            told = {index: info for index, info in enumerate(infos) if info}
            return (
                self._boundary.observations(),
                np.array(reward, np.float64),
                np.array(terminated, np.bool_),
                np.array(truncated, np.bool_),
                combine([gather(told)], self.num_envs),
            )

    async def render(self) -> tuple[Any, ...]:
        """Return the picture of every environment."""
        return await self.call("render")

    async def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """Call a method of every environment, or read an attribute."""
        if is_lifecycle(name):
            raise ArgumentError(f"call('{name}') is refused; use {name}() of all environments")
        return await self.parallel(lambda env, _: _attribute(env, name, args, kwargs))

    async def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return await self.call(name)

    async def set_attr(self, name: str, values: Any) -> None:  # noqa: ANN401
        """Set an attribute of every environment.

        Args:
            name: Its name.
            values: A list or tuple holds one value per environment, anything else is for all.
        """
        await self.parallel(partial(_set_attribute, name=name), values)

    async def parallel(
        self,
        function: Callable[[Any, Any], Any],
        arguments: Any = None,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        """Return ``function(env, argument)`` for every environment, evaluated all at once.

        Args:
            function: Plain, or a coroutine function.
            arguments: A list or tuple holds one per environment, anything else is for all.

        Raises:
            ArgumentError: There is not one argument per environment.
            EnvTimeoutError: An environment overran the deadline; all are closed.
        """
        self._overlap.check_open()
        given = arguments if isinstance(arguments, list | tuple) else [arguments] * self.num_envs
        if len(given) != self.num_envs:
            raise ArgumentError(f"arguments: got {len(given)} for {self.num_envs} environments")
        pairs = enumerate(zip(self.envs, given, strict=True))
        calls = {
            index: self._overlap.one(index, function, env, each) for index, (env, each) in pairs
        }
        return tuple(await self._overlap.ask(calls))

    def seed(self, seeds: int | Sequence[int | None]) -> None:
        """Use these seeds in the next `reset` that is not given any."""
        self._next_seeds = checked_seeds(seeds, self.num_envs)

    async def close(self) -> None:
        """Close all environments; those that do not end within two seconds are left behind.

        A step that is under way ends with gymnasium's ``ClosedEnvironmentError``.
        """
        self._claim.release()
        await self._overlap.close()

    async def __aenter__(self) -> ConcurrentEnvs:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all environments."""
        await self.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Return an attribute of every environment; of a method, what calls it in all of them."""
        if name.startswith("_") or "envs" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        found = tuple(_attribute(env, name, None, {}) for env in self.envs)
        return partial(self.call, name) if all(map(callable, found)) else found

    async def _reset_one(
        self,
        index: int,
        seed: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        given = None if options is None else dict(options)
        found = await self._overlap.one(index, self.envs[index].reset, seed=seed, options=given)
        observation, info = found
        self._boundary.put(index, observation)
        return dict(info)

    async def _step_one(self, index: int, action: Any) -> OneResult:  # noqa: ANN401
        if index in self._ended:
            if self.autoreset is AutoresetMode.DISABLED:
                raise EnvError("its episode is over: reset it with options={'reset_mask': …} first")
            self._ended.discard(index)
            return 0.0, False, False, await self._reset_one(index)
        result = await self._overlap.one(index, self.envs[index].step, action)
        observation, reward, terminated, truncated, info = result
        reward = number_of(reward, index)
        if terminated or truncated:
            if self.autoreset is AutoresetMode.SAME_STEP:
                # Copies: the environment may write the next ones into the same objects.
                final = {"final_obs": copy.deepcopy(observation), "final_info": kept(info)}
                info = {**final, **await self._reset_one(index)}
                return reward, bool(terminated), bool(truncated), info
            self._ended.add(index)
        self._boundary.put(index, observation)
        return reward, bool(terminated), bool(truncated), info


class _Boundary:
    """Takes batches of actions apart, and puts observations together; keeps the latest of both."""

    def __init__(self, spec: InstanceSpec, num_envs: int) -> None:
        self._space, self._num_envs = spec.observation_space, num_envs
        self._writer: ObservationWriter | None = None
        self._objects: list[Any] = [None] * num_envs
        self._actions: ActionRows | ActionObjects
        if not spec.fits_rows:
            self._actions = kept = ActionObjects(spec, num_envs)
            self._split: Callable[[], Sequence[Any]] = lambda: list(kept.actions)
            return
        exchange = Exchange(spec, num_envs, shared=False)
        self._rows = exchange.banks[0].observation
        self._writer = ObservationWriter(self._space)
        self._actions = ActionRows(spec, exchange.action)
        self._split = splitter(spec.action_space, exchange.action)

    def each(self, actions: Any) -> Sequence[Any]:  # noqa: ANN401
        """Return one action per environment.

        Raises:
            ArgumentError: They do not fit.
        """
        self._actions.write(actions)
        return self._split()

    def put(self, index: int, observation: Any) -> None:  # noqa: ANN401
        """Keep an environment's latest observation.

        Raises:
            EnvError: It is not of its space.
        """
        if self._writer is None:
            self._objects[index] = observation
        else:
            self._writer.write_one(index, observation, self._rows)

    def observations(self) -> Any:  # noqa: ANN401
        """Return a copy of the latest observations of all environments."""
        if self._writer is None:
            empty: Any = create_empty_array(self._space, self._num_envs, np.zeros)
            return copy.deepcopy(concatenate(self._space, self._objects, empty))
        copies = (row.copy() for row in self._rows)
        return unflatten(self._space, dict(zip(leaves(self._space), copies, strict=True)))


def _attribute(env: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    look_up = getattr(env, "get_wrapper_attr", None)
    found = look_up(name) if look_up is not None else getattr(env, name)
    return found(*args, **kwargs) if callable(found) and args is not None else found


def _set_attribute(env: Any, value: Any, name: str) -> None:  # noqa: ANN401
    set_it = getattr(env, "set_wrapper_attr", None) or partial(setattr, env)
    set_it(name, value)
