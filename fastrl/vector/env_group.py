"""The environments of one worker: stepped one after the other, writing into their rows.

The same code runs in a worker process, in a thread and in the caller itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.closing import close_all
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.episode_clock import NEVER, EpisodeClock
from fastrl.envs.rows import ObservationWriter, number_of
from fastrl.errors import USERS_FAILURES, EnvError
from fastrl.vector.action_rows import single_action, splitter
from fastrl.vector.exchange import NO_RESET, UNSEEDED, Bank, Exchange
from fastrl.vector.failures import brief
from fastrl.vector.infos import Columns, gather, kept
from fastrl.vector.instance import Instance
from fastrl.vector.spec import Env, InstanceSpec, VectorPlan

Step = Callable[[Any], tuple[Any, Any, Any, Any, dict[str, Any]]]


class EnvGroup:
    """Some environments of a plan.

    Args:
        plan: What to build.
        spec: What every environment must agree with.
        exchange: Where actions are read and results written.
        envs: Indices of the environments.
        first: The first of them, if it has been built.
        at: Its element 0 always says which environment is being stepped, reset or called, for
            whoever has to explain an error or a silence.

    Attributes:
        begin_close: Called just before each environment is closed.

    Raises:
        EnvError: An environment cannot be built, or has other spaces than the first.
    """

    def __init__(
        self,
        plan: VectorPlan,
        spec: InstanceSpec,
        exchange: Exchange,
        envs: range,
        at: MutableSequence[int],
        first: Env | None = None,
    ) -> None:
        self.envs = envs
        self._plan, self._spec, self._at = plan, spec, at
        self._exchange = exchange
        self._mode, self._num_envs = plan.autoreset, plan.num_envs
        self.begin_close: Callable[[], None] = lambda: None
        self._instances: list[Instance] = []
        self._claim = Claim()
        try:
            for index in envs:
                at[0] = index
                env = first or plan.instance(index).build()
                first = None
                self._claim.add(env, index)
                self._instances.append(Instance(env))
                who = f"env {index} of '{spec.name}'"
                check_spaces(env, spec, who, different=plan.different_spaces)
        except BaseException:
            with contextlib.suppress(*USERS_FAILURES):  # what failed first is what matters
                self.close()
            raise
        self._steps: list[Step] = [each.step for each in self._instances]
        self._clock = EpisodeClock([each.limit for each in self._instances])
        self._ended: set[int] = set()
        self._flagged = set(range(len(exchange.banks)))
        rows = slice(envs.start, envs.stop)
        self._banks = [bank.part(rows) for bank in exchange.banks]
        self.action_objects: Sequence[Any] | None = None
        self.observation_objects: list[Any] = [None] * len(envs)
        self._writer: ObservationWriter | None = None
        self._actions: Callable[[], Sequence[Any]] = self._own_objects
        if spec.fits_rows:
            self._writer = writer = ObservationWriter(spec.observation_space, envs.start, at)
            self._write_all = [writer.into(bank.observation) for bank in self._banks]
            self._action_rows = tuple(leaf[rows] for leaf in exchange.action)
            self._actions = splitter(spec.action_space, self._action_rows)

    def step(self, bank: int) -> Columns:
        """Step every environment once; return their infos."""
        # A step of a simulator leaves little of what follows in the caches, so that every function
        # of Python's own costs a microsecond or two: hence few of them.
        steps = self._steps
        if self._ended:
            steps = self._steps_after_ends()
        at, start = self._at, self.envs.start
        observations: list[Any] = []
        rewards: list[Any] = []
        infos: dict[int, dict[str, Any]] = {}
        ended: dict[int, tuple[bool, bool]] = {}
        self._clock.now += 1
        for index, (step, action) in enumerate(zip(steps, self._actions(), strict=True), start):
            at[0] = index
            observation, reward, terminated, truncated, info = step(action)
            observations.append(observation)
            rewards.append(reward)
            if info:
                infos[index] = info
            elif info is None:
                raise _no_info("step", info)
            if terminated or truncated:
                ended[index - start] = (bool(terminated), bool(truncated))
        views = self._banks[bank]
        if bank in self._flagged:
            self._flagged.discard(bank)
            views.terminated.fill(False)
            views.truncated.fill(False)
        if ended or self._clock.now >= self._clock.next_due:
            self._end_all(bank, ended, observations, infos)
        if self._writer is None:
            self.observation_objects = observations
        else:
            self._write_all[bank](observations)
        self._write_rewards(rewards, views.reward, start)
        return gather(infos, self._num_envs) if infos else {}

    def step_one(self, env_index: int, bank: int) -> dict[str, Any]:
        """Step one environment, or reset it where its ``reset_seed`` says so; return its info."""
        index = env_index - self.envs.start
        self._at[0] = env_index
        views, seeds = self._banks[bank], self._exchange.reset_seed
        observations: list[Any] = [None] * len(self.envs)
        infos: dict[int, dict[str, Any]] = {}
        flags, reward = (False, False), 0.0
        seed = int(seeds[env_index])
        if seed != NO_RESET:
            seeds[env_index] = NO_RESET
            observations[index], infos[env_index] = self._reset(
                index, None if seed == UNSEEDED else seed, None
            )
        else:
            step = self._steps[index]
            if index in self._ended:
                step = self._steps_after_ends((index,))[index]
            self._clock.advance_one(index)
            observations[index], reward, terminated, truncated, infos[env_index] = step(
                self._action(index)
            )
            flags = bool(terminated), bool(truncated) or self._clock.is_due(index)
            if any(flags):
                self._end(index, observations, infos)
        views.terminated[index], views.truncated[index] = flags
        self._flagged.add(bank)
        self._write_one(index, observations[index], views)
        self._write_rewards([reward], views.reward[index : index + 1], env_index)
        return infos[env_index]

    def reset(
        self,
        bank: int,
        options: Mapping[str, Any] | None,
        seeds: Sequence[int | None],
        mask: Sequence[bool],
    ) -> Columns:
        """Start an episode in those environments that ``mask`` names; return their infos."""
        views = self._banks[bank]
        infos: dict[int, dict[str, Any]] = {}
        for index, (seed, wanted) in enumerate(zip(seeds, mask, strict=True)):
            if not wanted:
                continue
            env_index = self._at[0] = self.envs.start + index
            observation, infos[env_index] = self._reset(index, seed, options)
            views.terminated[index] = views.truncated[index] = False
            self._write_one(index, observation, views)
        return gather({index: info for index, info in infos.items() if info})

    def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Call a method, or read an attribute, of those environments that ``mask`` names."""
        return [each.call(name, *args, **kwargs) for each in self._told(mask)]

    def set_attr(self, name: str, values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
        """Set an attribute of those environments that ``mask`` names."""
        chosen = [value for value, wanted in zip(values, mask, strict=True) if wanted]
        for each, value in zip(self._told(mask), chosen, strict=True):
            each.set(name, value)
        self._clock.limit([each.limit for each in self._instances])
        return []

    def apply(
        self, function: Callable[[Any, Any], Any], arguments: Sequence[Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Return ``function(env, argument)`` for those environments that ``mask`` names."""
        chosen = [value for value, wanted in zip(arguments, mask, strict=True) if wanted]
        pairs = zip(self._told(mask), chosen, strict=True)
        return [function(each.env, argument) for each, argument in pairs]

    def environments(self) -> list[Env]:
        """Return all environments, whose time limits know how many steps there were."""
        return [each.env for each in self._told([True] * len(self._instances))]

    def different_spaces(self) -> list[Any]:
        """Return the observation space of every environment, empty where all are the same."""
        found = [each.env.observation_space for each in self._instances]
        return [] if all(space == self._spec.observation_space for space in found) else found

    def close(self) -> None:
        """Close all environments; safe to call twice."""
        instances, self._instances = self._instances, []
        self._claim.release()
        close_all((each.env for each in instances), self.begin_close)

    def _own_objects(self) -> Sequence[Any]:
        assert self.action_objects is not None
        return self.action_objects[self.envs.start : self.envs.stop]

    def _action(self, index: int) -> Any:  # noqa: ANN401
        if self._writer is None:
            return self._actions()[index]
        return single_action(self._spec.action_space, self._action_rows, index)

    def _reset(
        self, index: int, seed: int | None, options: Mapping[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        self._clock.restart(index)
        self._ended.discard(index)
        observation, info = self._instances[index].reset(seed, options)
        if not isinstance(info, Mapping):
            raise _no_info("reset", info)
        return observation, info

    def _end_all(
        self,
        bank: int,
        ended: dict[int, tuple[bool, bool]],
        observations: list[Any],
        infos: dict[int, dict[str, Any]],
    ) -> None:
        """End the episodes that have ended, and those that are due."""
        for index in self._clock.due():
            ended[index] = (ended.get(index, (False, False))[0], True)
        if ended:
            self._flagged.add(bank)
        views = self._banks[bank]
        for index, flags in ended.items():
            views.terminated[index], views.truncated[index] = flags
            self._end(index, observations, infos)

    def _end(self, index: int, observations: list[Any], infos: dict[int, dict[str, Any]]) -> None:
        """Start the next episode now, or remember to."""
        if self._mode is not AutoresetMode.SAME_STEP:
            self._ended.add(index)
            return
        env_index = self._at[0] = self.envs.start + index
        # Copies: the environment may write the next ones into the same objects.
        final = observations[index]
        final = final.copy() if type(final) is np.ndarray else copy.deepcopy(final)
        final_info = kept(infos.get(env_index, {}))
        observations[index], info = self._reset(index, None, None)
        infos[env_index] = {"final_obs": final, "final_info": final_info, **info}

    def _steps_after_ends(self, indices: Sequence[int] | None = None) -> list[Step]:
        """Return the steps of all environments, where those whose episode is over reset."""
        steps = list(self._steps)
        for index in sorted(self._ended) if indices is None else indices:
            if self._mode is AutoresetMode.DISABLED:
                self._at[0] = self.envs.start + index
                raise EnvError("its episode is over: reset it with options={'reset_mask': …} first")
            steps[index] = self._resetting(index)
        return steps

    def _resetting(self, index: int) -> Step:
        def reset(_: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
            observation, info = self._reset(index, None, None)
            return observation, 0.0, False, False, info

        return reset

    def _told(self, mask: Sequence[bool]) -> Iterator[Instance]:
        """Yield the chosen environments, each up to date when it is its turn."""
        for index, (each, wanted) in enumerate(zip(self._instances, mask, strict=True)):
            if wanted:
                if each.limit != NEVER:
                    each.tell(self._clock.elapsed(index))
                self._at[0] = self.envs.start + index
                yield each

    def _write_one(self, index: int, observation: Any, views: Bank) -> None:  # noqa: ANN401
        if self._writer is None:
            self.observation_objects[index] = observation
        else:
            self._writer.write_one(index, observation, views.observation)

    def _write_rewards(self, rewards: Sequence[Any], row: NDArray[np.float64], first: int) -> None:
        try:
            row[:] = rewards
            # NumPy makes a NaN of None.
            if row.dot(row) >= 0:
                return
        except (TypeError, ValueError):
            # Arrays of one number, perhaps.
            pass
        for index, reward in enumerate(rewards, first):
            self._at[0] = index
            row[index - first] = number_of(reward, index)


def _no_info(method: str, info: object) -> EnvError:
    return EnvError(f"{method}() returned the info {brief(info)}; expected a dict")
