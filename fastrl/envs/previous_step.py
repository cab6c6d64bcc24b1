"""Adds the previous action and reward to observations, for policies with a memory.

An observation becomes ``{"observation": …, "previous_action": …, "previous_reward": …}``; a
``Dict`` gets two more keys. ``previous_action`` is one float32 vector of all leaves of the action
as the environment accepted it, after clipping or squashing; see `ActionVector`.
``previous_reward`` is ``[1]`` float32. Both are zeros in the first observation of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.envs.calls import EnvCall, make_call
from fastrl.envs.state import State, load_state, state_of
from fastrl.errors import EnvError
from fastrl.spaces import flatten, leaves
from fastrl.spec import EnvSpec

ACTION, REWARD = "previous_action", "previous_reward"


class ActionVector:
    """Actions as vectors: one-hot discrete choices and the numbers of other leaves, joined.

    Attributes:
        size: Length of a vector, k.

    Args:
        space: Action space of one environment.

    Raises:
        SpaceError: The space is unsupported.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        # The first column of each leaf, and for discrete leaves the column of each first choice.
        self._columns: list[tuple[slice, NDArray[np.int64] | None]] = []
        self.size = 0
        for leaf in leaves(space).values():
            start, sizes = self.size, _choices(leaf)
            self.size += sum(sizes) if sizes else int(np.prod(leaf.shape or ()))
            first = np.cumsum([start, *sizes[:-1]]) - np.ravel(getattr(leaf, "start", 0))
            self._columns.append((slice(start, self.size), first if sizes else None))

    def write(self, actions: Any, rows: NDArray[np.float32]) -> None:
        """Write actions ``[n, *shape]``, in the dicts and tuples of the space, as ``[n, k]``."""
        rows.fill(0)
        each = np.arange(len(rows))[:, None]
        for (columns, first), leaf in zip(
            self._columns, flatten(self._space, actions), strict=True
        ):
            values = np.reshape(leaf, (len(rows), -1))
            if first is None:
                rows[:, columns] = values
            else:
                rows[each, values + first] = 1


def _choices(leaf: spaces.Space[Any]) -> list[int]:
    """Return the numbers of choices of a discrete leaf; empty for others."""
    if isinstance(leaf, spaces.Discrete):
        return [int(leaf.n)]
    return leaf.nvec.ravel().tolist() if isinstance(leaf, spaces.MultiDiscrete) else []


def with_previous(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Dict:
    """Return the space of observations with the previous action and reward.

    Raises:
        EnvError: The observation is a ``Dict`` with one of these keys.
    """
    own = list(space.items()) if isinstance(space, spaces.Dict) else [("observation", space)]
    for key, _ in own:
        if key in (ACTION, REWARD):
            raise EnvError(
                f"model.previous_action_reward: observations have the key '{key}' already"
            )
    sizes = {ACTION: ActionVector(action_space).size, REWARD: 1}
    new = [(key, spaces.Box(-np.inf, np.inf, (size,))) for key, size in sizes.items()]
    # Pairs keep their order; a mapping would be sorted.
    return spaces.Dict([*own, *new])


def spec_with_previous(spec: EnvSpec) -> EnvSpec:
    """Return the spec of an environment with the previous action and reward; see this module."""
    return replace(spec, observation_space=with_previous(spec.observation_space, spec.action_space))


class BatchWithPrevious:
    """A `BatchedEnv` whose observations have the previous action and reward.

    It has no state, as all it adds is in the observations.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments, n.

    Args:
        env: The batch, which is closed by `close`.
        bounds: ``clip`` or ``squash``: the conversion of bounded ``Box`` actions by ``env``.
    """

    def __init__(self, env: BatchedEnv, bounds: ActionBounds = "clip") -> None:
        self._env, self.num_envs = env, env.num_envs
        self.spec = spec_with_previous(env.spec)
        self._accepted = ActionConverter(env.spec.action_space, bounds).batch
        self._vector = ActionVector(env.spec.action_space)

    @property
    def unwrapped(self) -> Any:
        """The innermost environment."""
        return getattr(self._env, "unwrapped", self._env)

    @property
    def tell_resets(self) -> Any:
        """See `GymLoop.tell_resets`; absent if the batch has none."""
        return self._env.tell_resets  # type: ignore[attr-defined]

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`."""
        self._env.reset(seeds, observation[:-2])
        for rows in observation[-2:]:
            rows.fill(0)

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`."""
        seen, final = views.observation, views.final_observation
        self._env.step(replace(views, observation=seen[:-2], final_observation=final[:-2]))
        action, reward = seen[-2:]
        self._vector.write(self._accepted(views.action), action)
        reward[:, 0] = views.reward
        ended = views.terminated | views.truncated
        if ended.any():
            for last, now in zip(final[-2:], seen[-2:], strict=True):
                last[ended] = now[ended]
                now[ended] = 0

    def make_call(self, call: EnvCall) -> None:
        """Make a call in every environment; see `fastrl.envs.calls.make_call`."""
        make_call(self._env, call)

    def get_state(self) -> State:
        """Return the states of all environments."""
        return state_of(self._env)

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`."""
        load_state(self._env, state)

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        self._env.close()


class PreviousActionReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment of gymnasium whose observations have the previous action and reward."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = with_previous(env.observation_space, env.action_space)
        self._nested = isinstance(env.observation_space, spaces.Dict)
        self._vector = ActionVector(env.action_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        given = {} if options is None else {"options": options}
        observation, info = self.env.reset(seed=seed, **given)
        return self._with(observation, np.zeros(self._vector.size, np.float32), 0.0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step once."""
        observation, reward, *rest = self.env.step(action)
        vector = np.zeros((1, self._vector.size), np.float32)
        self._vector.write(action, vector)
        return self._with(observation, vector[0], float(reward)), reward, *rest

    def _with(self, observation: Any, action: NDArray[np.float32], reward: float) -> Any:
        own = observation if self._nested else {"observation": observation}
        return {**own, ACTION: action, REWARD: np.array([reward], np.float32)}
