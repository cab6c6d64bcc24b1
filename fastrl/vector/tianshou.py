"""Tianshou's vector environment over fastrl's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Dict, Tuple
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from fastrl.vector.failures import ArgumentError
from fastrl.vector.infos import separate
from fastrl.vector.seeds import checked_seeds
from fastrl.vector.vector_env import FastVectorEnv, StepResult

try:
    from tianshou.env import BaseVectorEnv
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "tianshou":
        raise
    raise ModuleNotFoundError(
        "fastrl.vector.to_tianshou needs Tianshou: pip install 'tianshou>=2'", name=error.name
    ) from None

Indices = int | list[int] | NDArray[Any] | None
Step = tuple[
    NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.object_]
]


class TianshouVectorEnv(BaseVectorEnv):
    """Steps a `FastVectorEnv` behind the interface of Tianshou 2.

    Attributes:
        envs: The vector environment; closed by `close`.
        env_num: Number of environments.
    """

    # Without that of the base class, which builds a worker for each environment.
    def __init__(self, envs: FastVectorEnv) -> None:
        if envs.autoreset_mode is not AutoresetMode.DISABLED:
            raise ArgumentError("Tianshou needs make_vec(..., autoreset='disabled')")
        if envs.output != "numpy":
            raise ArgumentError("Tianshou needs make_vec(..., output='numpy')")
        if isinstance(envs.single_observation_space, Tuple):
            raise ArgumentError(
                "Tianshou has no Tuple observations; use a wrapper that gives a Dict"
            )
        self.envs = envs
        self.env_num = self.wait_num = envs.num_envs
        self.timeout: float | None = None
        self.is_async, self.is_closed = False, False
        self.workers: list[Any] = []
        self.waiting_conn: list[Any] = []
        self.waiting_id: list[int] = []
        self.ready_id = list(range(self.env_num))
        # One per environment, as Tianshou has them: each is sampled from a stream of its own.
        self._spaces: dict[str, list[Space[Any]]] = {
            "action_space": [copy.deepcopy(envs.single_action_space) for _ in self.ready_id],
            "observation_space": [copy.deepcopy(envs.single_observation_space)] * self.env_num,
        }

    def reset(self, env_id: Indices = None, **kwargs: Any) -> tuple[NDArray[Any], NDArray[Any]]:  # noqa: ANN401
        """Start an episode in every environment, or in some.

        Args:
            env_id: The environments; all by default.
            kwargs: ``seed`` and ``options``, which every environment gets as they are.

        Returns:
            Observations and infos, one each per environment.

        Raises:
            ArgumentError: Arguments do not fit.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        if unknown := set(kwargs) - {"seed", "options"}:
            raise ArgumentError(f"reset takes seed and options, got {', '.join(sorted(unknown))}")
        indices = self._indices(env_id)
        seed, options = kwargs.get("seed"), kwargs.get("options")
        if len(set(indices.tolist())) < self.env_num:
            mask = np.zeros(self.env_num, np.bool_)
            mask[indices] = True
            options = {**(options or {}), "reset_mask": mask}
        observation, infos = self.envs.reset(
            seed=None if seed is None else [seed] * self.env_num, options=options
        )
        told = separate(infos, self.env_num)
        found = [told[index] for index in indices.tolist()]
        return self._rows(observation, self.env_num)[indices], _objects(found)

    def step(self, action: Any, id: Indices = None) -> Step:  # noqa: ANN401
        """Step all environments, or some, once.

        Args:
            action: One for each of them.
            id: The environments; all by default.

        Returns:
            Observations, rewards, terminated, truncated and infos, in the order of ``id``.

        Raises:
            ArgumentError: The actions do not fit; no environment was stepped.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        if action is None:
            raise ArgumentError("step: these environments all answer at once, so None is no action")
        indices = self._indices(id)
        actions = self._batched(action, len(indices))
        if np.array_equal(indices, self.ready_id):
            result, rows = self.envs.step(actions), indices
        else:
            result, rows = self._step_some(actions, indices)
        observation, reward, terminated, truncated, infos = result
        count = len(reward)
        told = separate(infos, count)
        found = [told[row] | {"env_id": index} for row, index in zip(rows, indices, strict=True)]
        return (
            self._rows(observation, count)[rows],
            reward[rows],
            terminated[rows],
            truncated[rows],
            _objects(found),
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
        indices = self._indices(id).tolist()
        if key in self._spaces:
            return [self._spaces[key][index] for index in indices]
        found = self.envs.get_attr(key)
        return [found[index] for index in indices]

    def set_env_attr(self, key: str, value: Any, id: Indices = None) -> None:  # noqa: ANN401
        """Set an attribute of some environments to one and the same value."""
        chosen = set(self._indices(id).tolist())
        self.envs.set_some(
            key, [value] * self.env_num, [index in chosen for index in self.ready_id]
        )

    def render(self, **kwargs: Any) -> list[Any]:  # noqa: ANN401
        """Return the picture of every environment."""
        return list(self.envs.call("render", **kwargs))

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()
        self.is_closed = True

    def _indices(self, given: Indices) -> NDArray[np.integer[Any]]:
        """Return the indices of the environments that are meant.

        Raises:
            ArgumentError: They are no indices, or there are fewer environments.
        """
        found = np.asarray(self._wrap_id(given))
        is_list = found.ndim == 1 and found.size and found.dtype.kind in "iu"
        if not is_list or found.min() < 0 or found.max() >= self.env_num:
            raise ArgumentError(f"id: expected whole numbers below {self.env_num}, got {given}")
        return found

    def _step_some(
        self,
        actions: Any,  # noqa: ANN401
        indices: NDArray[np.integer[Any]],
    ) -> tuple[StepResult, NDArray[np.integer[Any]]]:
        """Return the step of some environments, and which row of it is that of each."""
        self.envs.send(actions, indices)
        result = self.envs.recv()
        rows = np.zeros(self.env_num, np.int64)
        rows[result[-1]["env_id"]] = np.arange(len(indices))
        return result, rows[indices]

    def _batched(self, actions: Any, count: int) -> Any:  # noqa: ANN401
        """Return actions of dictionaries or tuples, one per environment, as the batch they form."""
        space = self.envs.single_action_space
        if not isinstance(space, Dict | Tuple) or isinstance(actions, dict):
            return actions
        empty: Any = create_empty_array(space, count)
        return concatenate(space, list(actions), empty)

    def _rows(self, observation: Any, count: int) -> NDArray[Any]:  # noqa: ANN401
        """Return a batch of observations as an array: where they are dictionaries, one of those."""
        if isinstance(observation, np.ndarray):
            return observation
        space = self.envs.observation_space
        if count < self.env_num:
            space = batch_space(self.envs.single_observation_space, count)
        return _objects(list(iterate(space, observation)))


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return any values as an array of objects: NumPy would take a list of sequences apart."""
    found = np.empty(len(values), object)
    for index, value in enumerate(values):
        found[index] = value
    return found


def to_tianshou(envs: FastVectorEnv) -> TianshouVectorEnv:
    """Return a vector environment of `fastrl.make_vec` as one of Tianshou.

    Raises:
        ArgumentError: It is something else, its autoreset mode is not ``disabled``, it gives
            tensors, or its observations are tuples.
    """
    if not isinstance(envs, FastVectorEnv):
        raise ArgumentError(
            f"to_tianshou takes what fastrl.make_vec returns, got {type(envs).__name__}"
        )
    return TianshouVectorEnv(envs)
