"""The loop that steps n single gymnasium environments behind `BatchedEnv`.

Python code in the loop runs once per environment, so it does only what each one needs:
actions, observations, rewards and flags are converted in whole batches, and one comparison per
batch checks time limits.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.closing import close_all
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.agreement import Claim, HasSpaces, check_spaces
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.rows import ObservationWriter, number_of, reset_values, step_values
from fastrl.envs.state import State, StateError, layers_state, load_layers_state
from fastrl.errors import USERS_FAILURES, EnvError, cause
from fastrl.spec import EnvSpec

_LOGGER = logging.getLogger(__name__)
_FLAGS = (False, False)
_STEPPED: Any = (None, 0.0, False, False, {})
Env = gymnasium.Env[Any, Any]


class StepLoop(ABC):
    """Steps gymnasium environments in turn, in this thread.

    `GymLoop` and `fastrl.vector.groups.EnvGroup` define the end of an episode, and set
    ``_writer``.

    Args:
        envs: Environments, which nothing else may step.
        spec: Their spaces.
        name: Name of these environments, for messages.
        time_limits: Steps after which this loop truncates an episode of each environment; None
            lets the environment do so. By default all environments do.
        first: Index of the first environment.
        at: Element 0 is always the index of the environment that is being stepped or reset.
        different: Whether the bounds of observations may differ.

    Raises:
        EnvError: An environment has other spaces, or is already in use; the error names its index.
        SpaceError: A space is unsupported.
    """

    _writer: ObservationWriter

    def __init__(
        self,
        envs: Sequence[Env],
        spec: HasSpaces,
        name: str,
        *,
        time_limits: Sequence[int | None] = (),
        first: int = 0,
        at: MutableSequence[int] | None = None,
        different: bool = False,
    ) -> None:
        self._first, self._at = first, [first] if at is None else at
        self._claim = Claim()
        for index, env in enumerate(envs, first):
            self._at[0] = index
            self._claim.add(env, index)
            check_spaces(env, spec, f"env {index} of '{name}'", different=different)
        self._steps: list[Callable[[Any], Any]] = [env.step for env in envs]
        self._indices = range(first, first + len(envs))
        self._clock = EpisodeClock(time_limits or [None] * len(envs))
        # Environments whose episode is done and whose next one has not begun.
        self._over: set[int] = set()

    def _step_all(self, actions: Sequence[Any], views: StepViews) -> list[Any]:
        """Step every environment once; return their infos.

        Args:
            actions: One action for each environment.
            views: Arrays of observations, rewards and flags, written.
        """
        # After a step of a simulator the caches contain little of this code, so each call of a
        # Python function takes a microsecond or two; so there are few of them.
        steps, at, clock = self._steps, self._at, self._clock
        if self._over:
            steps = [self._next_step(index) for index in range(len(steps))]
        observations: list[Any] = []
        rewards: list[Any] = []
        infos: list[Any] = []
        ended: dict[int, tuple[bool, bool]] = {}
        add_observation, add_reward, add_info = observations.append, rewards.append, infos.append
        clock.now += 1
        result = _STEPPED
        try:
            for at[0], step, action in zip(self._indices, steps, actions, strict=True):
                result = step(action)
                observation, reward, terminated, truncated, info = result
                if terminated or truncated:
                    ended[len(rewards)] = bool(terminated), bool(truncated)
                add_observation(observation)
                add_reward(reward)
                add_info(info)
        except USERS_FAILURES as error:
            step_values(result, at[0])  # raises if it is the reason
            self._failed(error, actions[at[0] - self._first])
            raise
        views.terminated.fill(False)
        views.truncated.fill(False)
        if clock.now >= clock.next_due:
            for index in clock.due():
                ended[index] = ended.get(index, _FLAGS)[0], True
        for index, flags in ended.items():
            self._end(index, flags, observations, infos, views)
        self._write(observations, views)
        self._write_rewards(rewards, views.reward)
        return infos

    def _failed(self, error: BaseException, action: Any) -> None:  # noqa: B027
        """Raise a better error for an error of a step, if there is one."""

    @abstractmethod
    def _end(
        self,
        index: int,
        flags: tuple[bool, bool],
        observations: list[Any],
        infos: list[Any],
        views: StepViews,
    ) -> None:
        """End an episode: set its flags, and begin the next one or mark that it must begin."""

    def _write(self, observations: list[Any], views: StepViews) -> None:
        self._writer.write_all(observations, views.observation)

    def _next_step(self, index: int) -> Callable[[Any], Any]:
        """Return the function that steps an environment; one of `_over` is reset or rejected."""
        return self._steps[index]

    def _write_rewards(
        self, rewards: Sequence[Any], row: NDArray[np.floating[Any]], start: int = 0
    ) -> None:
        try:
            row[:] = rewards
            # The fastest check for NaN, to which NumPy also converts None.
            if row.dot(row) >= 0:
                return
        except (TypeError, ValueError, OverflowError, RuntimeError):
            # They may be arrays of one number, or tensors that need a gradient.
            pass
        # NaN is stored, and the caller decides about it.
        for index, reward in enumerate(rewards):
            self._at[0] = self._first + start + index
            row[index] = number_of(reward, self._at[0])


class GymLoop(StepLoop):
    """Steps gymnasium environments behind `BatchedEnv`.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments, n.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        spec: EnvSpec,
        *,
        time_limits: Sequence[int | None] = (),
        action_bounds: ActionBounds = "clip",
        begun: NDArray[np.int64] | None = None,
    ) -> None:
        """Own ``envs``, which `close` closes.

        Args:
            envs: Environments with the spaces of ``spec``, which nothing else may step.
            spec: Spaces and fields of each of them.
            time_limits: See `StepLoop`.
            action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions.
            begun: ``[1]`` int64, to which `reset` adds 1 for each environment.

        Raises:
            EnvError: An environment has other spaces, or is already in use; the error names its
                index.
            SpaceError: A space is unsupported, or cannot be squashed.
        """
        self.spec = spec
        self.num_envs = len(envs)
        self._envs = list(envs)
        self._split = ActionConverter(spec.action_space, action_bounds).split
        self._writer = ObservationWriter(spec.observation_space)
        super().__init__(envs, spec, spec.id, time_limits=time_limits)
        self._resetting = np.zeros(1, np.int64)
        self._begun = np.zeros(1, np.int64) if begun is None else begun

    def tell_resets(self, resetting: NDArray[np.int64]) -> None:
        """Set ``resetting[0]`` to 1 during every reset from now on, and to 0 after it.

        `close` adds 1 before it closes an environment.
        """
        self._resetting = resetting

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`.

        Raises:
            EnvError: An environment raised, or its observation is invalid; the error names its
                index.
        """
        for index, seed in enumerate(seeds):
            self._writer.write_one(index, self._reset_env(index, int(seed)), observation)
            self._begun += 1

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`.

        Raises:
            EnvError: An environment raised or broke its contract; the error names its index.
        """
        self._step_all(self._split(views.action), views)

    def get_state(self) -> State:
        """Return the states of all environments, their wrappers and their time limits.

        Raises:
            StateError: An environment cannot be saved; the error names its index.
        """
        saved = []
        for index, env in enumerate(self._envs):
            with self._naming(f"env {index}"):
                saved.append(layers_state(env))
        elapsed = [self._clock.elapsed(index) for index in range(self.num_envs)]
        return {"envs": saved, "elapsed": elapsed}

    def set_state(self, state: State) -> None:
        """Restore such a state, after a reset.

        Raises:
            StateError: It does not belong to an environment; the error names its index.
        """
        for index, (env, saved) in enumerate(zip(self._envs, state["envs"], strict=True)):
            with self._naming(f"env {index}"):
                load_layers_state(env, saved)
        self._clock.resume(state["elapsed"])

    def make_call(self, call: EnvCall) -> None:
        """Make a call in every environment.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; the error names its
                index.
        """
        for index, env in enumerate(self._envs):
            call.make(env, f"env {index} of '{self.spec.id}'")

    def close(self) -> None:
        """Close all environments; safe to call twice.

        Their errors are only logged, so that no result is lost.
        """
        envs, self._envs, self._steps = self._envs, [], []
        self._claim.release()
        try:
            close_all(envs, self._count_close)
        except USERS_FAILURES as error:
            _LOGGER.warning("'%s' raised in close(): %s", self.spec.id, cause(error))

    def _count_close(self) -> None:
        self._resetting[0] += 1

    @contextmanager
    def _naming(self, who: str) -> Iterator[None]:
        """Add the environment to errors of states."""
        try:
            yield
        except StateError as error:
            raise StateError(f"{who} of '{self.spec.id}': {error}") from error

    def _note_values(self, index: int, info: dict[str, Any], row: NDArray[np.float32]) -> None:
        """Write the values that the specification names; NaN if this episode has none."""
        for column, name in enumerate(self.spec.episode_info):
            found: Any = info
            for part in name.split("/"):
                found = found.get(part, np.nan) if isinstance(found, dict) else np.nan
            try:
                row[column] = found
            except (TypeError, ValueError, OverflowError):
                raise EnvError(
                    f"env {index} of '{self.spec.id}': info '{name}' is {brief(found)}; "
                    "expected a number"
                ) from None

    def _end(
        self,
        index: int,
        flags: tuple[bool, bool],
        observations: list[Any],
        infos: list[Any],
        views: StepViews,
    ) -> None:
        """Store the values and the last observation of an episode, and start the next one."""
        if views.episode_info is not None:
            self._note_values(index, infos[index], views.episode_info[index])
        # Written before the reset, as the environment may reuse the array that it returned.
        self._writer.write_one(index, observations[index], views.final_observation)
        (views.terminated if flags[0] else views.truncated)[index] = True
        observations[index] = self._reset_env(index, None)

    def _reset_env(
        self, index: int, seed: int | None, reset: Callable[..., Any] | None = None
    ) -> Any:
        """Begin an episode by ``reset``, by default the environment's."""
        self._resetting[0] = 1
        try:
            result = (reset or self._envs[index].reset)(seed=seed)
        except USERS_FAILURES as error:
            raise EnvError(
                f"env {index} of '{self.spec.id}' raised in reset(seed={seed}): {cause(error)}"
            ) from error
        self._resetting[0] = 0
        self._clock.restart(index)
        return reset_values(result, index)[0]

    def _failed(self, error: BaseException, action: Any) -> None:
        shown = " ".join(str(action).split())
        raise EnvError(
            f"env {self._at[0]} of '{self.spec.id}' raised in step({shown}): {cause(error)}"
        ) from error


NEVER = 2**62
"""Time limit of an environment without one."""


class EpisodeClock:
    """Counts steps of some environments against their time limits.

    A step of all of them costs one addition and one comparison until the first episode is due; an
    array of counters would take as long as a fast environment.

    Args:
        limits: Steps after which each environment's episode is truncated; None for no limit.

    Attributes:
        now: Steps of all environments; a caller that steps them all adds one.
        next_due: No episode is due before ``now`` has this value.
    """

    def __init__(self, limits: Sequence[int | None]) -> None:
        self.now, self.next_due = 0, 0
        self._begun = [0] * len(limits)
        self.limit(limits)

    def limit(self, limits: Sequence[int | None]) -> None:
        """Set new limits for all environments."""
        self._limits = [NEVER if limit is None else limit for limit in limits]
        self._settle()

    def restart(self, index: int) -> None:
        """Begin an environment's episode."""
        self._begun[index] = self.now
        # An early bound costs only one check. Limits may differ, so this one may be earlier.
        self.next_due = min(self.next_due, self.now + self._limits[index])

    def elapsed(self, index: int) -> int:
        """Return the number of steps of an environment's episode so far."""
        return self.now - self._begun[index]

    def advance_one(self, index: int) -> None:
        """Count a step of one environment."""
        self._begun[index] -= 1
        self.next_due = min(self.next_due, self._begun[index] + self._limits[index])

    def resume(self, elapsed: Sequence[int]) -> None:
        """Continue episodes with these numbers of steps so far."""
        self._begun = [self.now - int(steps) for steps in elapsed]
        self._settle()

    def due(self) -> Sequence[int]:
        """Return the environments whose episodes have had all their steps."""
        if self.now < self.next_due:
            return ()
        self._settle()
        return [index for index in range(len(self._limits)) if self.is_due(index)]

    def is_due(self, index: int) -> bool:
        """Return whether an environment's episode has had all its steps."""
        return self.elapsed(index) >= self._limits[index]

    def _settle(self) -> None:
        """Compute when the next episode is due."""
        ends = (begun + limit for begun, limit in zip(self._begun, self._limits, strict=True))
        self.next_due = min(ends, default=self.now + 1)
