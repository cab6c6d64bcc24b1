"""Tianshou's vector environment over fastrl's vector environments."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Dict, Tuple
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray
from tianshou.env import BaseVectorEnv

from fastrl.envs.vector_facade import checked_seeds
from fastrl.errors import ArgumentError
from fastrl.vector.adapters import Adapter
from fastrl.vector.exchange import array_of_objects
from fastrl.vector.infos import separate
from fastrl.vector.vector_env import FastVectorEnv

Indices = int | list[int] | NDArray[Any] | None
Step = tuple[
    NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.object_]
]


class TianshouVectorEnv(Adapter, BaseVectorEnv):
    """Steps a `FastVectorEnv` behind the interface of Tianshou 2; see `Adapter`.

    Attributes:
        env_num: Number of environments.
    """

    # `BaseVectorEnv.__init__` is not called: it builds a worker for each environment.
    def __init__(self, envs: FastVectorEnv) -> None:
        super().__init__(envs, "Tianshou", AutoresetMode.DISABLED)
        if isinstance(envs.single_observation_space, Tuple):
            raise ArgumentError(
                "Tianshou has no Tuple observations; use a wrapper that returns a Dict"
            )
        self.env_num = self.wait_num = envs.num_envs
        self.timeout: float | None = None
        self.is_async, self.is_closed = False, False
        self.workers: list[Any] = []
        self.waiting_conn: list[Any] = []
        self.waiting_id: list[int] = []
        self.ready_id = list(range(self.env_num))
        # One per environment, as in Tianshou: each action space has its own random stream.
        self._spaces: dict[str, list[Space[Any]]] = {
            "action_space": [copy.deepcopy(envs.single_action_space) for _ in self.ready_id],
            "observation_space": [copy.deepcopy(envs.single_observation_space)] * self.env_num,
        }

    def reset(self, env_id: Indices = None, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Start an episode in every environment, or in some.

        Args:
            env_id: The environments; all by default.
            kwargs: ``seed`` and ``options``, passed to every environment unchanged.

        Returns:
            Observations and infos, one each per environment.

        Raises:
            ArgumentError: An argument is unknown or invalid.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        if unknown := set(kwargs) - {"seed", "options"}:
            raise ArgumentError(f"reset takes seed and options, got {', '.join(sorted(unknown))}")
        indices = self._chosen(env_id)
        seed, options = kwargs.get("seed"), kwargs.get("options")
        if len(set(indices)) < self.env_num:
            mask = np.isin(np.arange(self.env_num), indices)
            options = {**(options or {}), "reset_mask": mask}
        observation, infos = self.envs.reset(
            seed=None if seed is None else [seed] * self.env_num, options=options
        )
        per_env = separate(infos, self.env_num)
        found = array_of_objects([per_env[index] for index in indices])
        return self._rows(observation, self.env_num)[indices], found

    def step(self, action: Any, id: Indices = None) -> Step:
        """Step all environments, or some, once.

        Args:
            action: One action for each of them.
            id: The environments; all by default.

        Returns:
            Observations, rewards, terminated, truncated and infos, in the order of ``id``.

        Raises:
            ArgumentError: The actions are invalid; no environment was stepped.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        if action is None:
            raise ArgumentError("step: None is not an action, since this adapter is synchronous")
        indices = self._chosen(id)
        actions = self._batched(action, len(indices))
        rows = indices
        if indices == self.ready_id:
            observation, reward, terminated, truncated, infos = self.envs.step(actions)
        else:
            self.envs.send(actions, indices)
            observation, reward, terminated, truncated, infos = self.envs.recv()
            row_of = {index: row for row, index in enumerate(infos["env_id"].tolist())}
            rows = [row_of[index] for index in indices]
        per_row = separate(infos, len(reward))
        found = [per_row[row] | {"env_id": index} for row, index in zip(rows, indices, strict=True)]
        return (
            self._rows(observation, len(reward))[rows],
            reward[rows],
            terminated[rows],
            truncated[rows],
            array_of_objects(found),
        )

    def seed(self, seed: int | list[int] | None = None) -> list[list[int] | None]:
        """Reset all environments with these seeds, and seed their action spaces.

        Args:
            seed: One for each environment, or the first of consecutive ones.
        """
        seeds = checked_seeds(seed, self.env_num)
        for space, each in zip(self._spaces["action_space"], seeds, strict=True):
            space.seed(each)
        self.envs.reset(seed=seeds)
        return [[each] for each in seeds]  # type: ignore[list-item]

    def get_env_attr(self, key: str, id: Indices = None) -> list[Any]:
        """Return an attribute of some environments."""
        if key in self._spaces:
            return [self._spaces[key][index] for index in self._chosen(id)]
        return self.envs.call_some(key, self._chosen(id))

    def set_env_attr(self, key: str, value: Any, id: Indices = None) -> None:
        """Set an attribute of some environments to the same value."""
        self.envs.set_some(key, [value] * self.env_num, self._chosen(id))

    def render(self, **kwargs: Any) -> list[Any]:
        """Return the frame of every environment."""
        return list(self.envs.call("render", **kwargs))

    def close(self) -> None:
        """Close the environments."""
        super().close()
        self.is_closed = True

    def _batched(self, actions: Any, count: int) -> Any:
        """Return actions of dictionaries or tuples, one per environment, as one batch."""
        space = self.envs.single_action_space
        if not isinstance(space, Dict | Tuple) or isinstance(actions, dict):
            return actions
        empty: Any = create_empty_array(space, count)
        return concatenate(space, list(actions), empty)

    def _rows(self, observation: Any, count: int) -> NDArray[Any]:
        """Return a batch of observations as an array, of dictionaries if they are dictionaries."""
        if isinstance(observation, np.ndarray):
            return observation
        space = self.envs.observation_space
        if count < self.env_num:
            space = batch_space(self.envs.single_observation_space, count)
        return array_of_objects(list(iterate(space, observation)))


def to_tianshou(envs: FastVectorEnv) -> TianshouVectorEnv:
    """Return a vector environment of `fastrl.make_vec` as one of Tianshou.

    Raises:
        ArgumentError: ``envs`` has another type, its autoreset mode is not ``disabled``, it returns
            tensors, or its observations are tuples.
    """
    return TianshouVectorEnv(envs)
