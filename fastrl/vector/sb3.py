"""Stable-Baselines3's `VecEnv` over fastrl's vector environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.vector.failures import ArgumentError
from fastrl.vector.infos import separate
from fastrl.vector.vector_env import FastVectorEnv

try:
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    if error.name != "stable_baselines3":
        raise
    raise ModuleNotFoundError(
        "fastrl.vector.to_sb3 needs Stable-Baselines3: pip install stable-baselines3",
        name=error.name,
    ) from None

Indices = int | Iterable[int] | None


class Sb3VecEnv(VecEnv):
    """Steps a `FastVectorEnv` behind the interface of Stable-Baselines3.

    Attributes:
        envs: The vector environment; closed by `close`.
    """

    def __init__(self, envs: FastVectorEnv) -> None:
        if envs.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ArgumentError("Stable-Baselines3 needs make_vec(..., autoreset='same_step')")
        if envs.output != "numpy":
            raise ArgumentError("Stable-Baselines3 needs make_vec(..., output='numpy')")
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:  # noqa: ANN401
        """Start an episode in every environment; return the first observations.

        Seeds and options are those of `seed` and `set_options`, and are used once.

        Raises:
            ArgumentError: Environments have different options.
        """
        options = self._options[0]
        if any(each != options for each in self._options):
            raise ArgumentError("set_options: all environments get the same options")
        seeded = any(seed is not None for seed in self._seeds)
        observation, infos = self.envs.reset(
            seed=self._seeds if seeded else None, options=options or None
        )
        self.reset_infos = separate(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step, to be finished by `step_wait`."""
        self.envs.step_async(actions)

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Finish a step; return observations, rewards, dones and infos."""
        observation, reward, terminated, truncated, infos = self.envs.step_wait()
        done = terminated | truncated
        told = separate(infos, self.num_envs)
        if done.any():
            for index in np.flatnonzero(done).tolist():
                info = told[index]
                final, last = info.pop("final_info", {}), info.pop("final_obs")
                self.reset_infos[index] = info
                told[index] = {**final, "terminal_observation": last}
        cut_off = (truncated & ~terminated).tolist()
        for info, cut in zip(told, cut_off, strict=True):
            info["TimeLimit.truncated"] = cut
        return observation, reward.astype(np.float32), done, told

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of some environments."""
        return self._ordered(lambda mask: self.envs.call_some(attr_name, mask), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:  # noqa: ANN401
        """Set an attribute of some environments to one and the same value."""
        mask = self._mask(indices)
        self.envs.set_some(attr_name, [value] * self.num_envs, mask)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,  # noqa: ANN401
        indices: Indices = None,
        **method_kwargs: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Call a method of some environments."""
        return self._ordered(
            lambda mask: self.envs.call_some(method_name, mask, *method_args, **method_kwargs),
            indices,
        )

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return whether some environments have a wrapper of a class."""
        chosen = self._chosen(indices)
        if self.envs.plan.native is not None:  # a batch, around whose environments nothing is
            return [False] * len(chosen)
        found = self.envs.parallel(is_wrapped, wrapper_class)
        return [found[index] for index in chosen]

    def get_images(self) -> Sequence[Any]:
        """Return the picture of every environment."""
        return list(self.envs.render())

    def _chosen(self, indices: Indices) -> list[int]:
        """Return the environments that are meant; as in a list, -1 is the last one.

        Raises:
            ArgumentError: There are fewer.
        """
        found = [int(index) for index in self._get_indices(indices)]
        for index in found:
            if not -self.num_envs <= index < self.num_envs:
                raise ArgumentError(f"indices: there is no {index} among {self.num_envs}")
        return [index % self.num_envs for index in found]

    def _mask(self, indices: Indices) -> list[bool]:
        chosen = set(self._chosen(indices))
        return [index in chosen for index in range(self.num_envs)]

    def _ordered(self, ask: Any, indices: Indices) -> list[Any]:  # noqa: ANN401
        """Return the answers of some environments in the order in which they were named."""
        wanted = self._chosen(indices)
        known = sorted(set(wanted))
        by_index: Mapping[int, Any] = dict(zip(known, ask(self._mask(wanted)), strict=True))
        return [by_index[index] for index in wanted]


def to_sb3(envs: FastVectorEnv) -> Sb3VecEnv:
    """Return a vector environment of `fastrl.make_vec` as one of Stable-Baselines3.

    Episode statistics come from SB3's own ``VecMonitor`` around it, or from its ``Monitor`` among
    the ``wrappers`` of `fastrl.make_vec`.

    Raises:
        ArgumentError: It is something else, its autoreset mode is not ``same_step``, or it gives
            tensors.
    """
    if not isinstance(envs, FastVectorEnv):
        raise ArgumentError(f"to_sb3 takes what fastrl.make_vec returns, got {type(envs).__name__}")
    return Sb3VecEnv(envs)
