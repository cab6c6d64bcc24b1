"""Stable-Baselines3's `VecEnv` over fastrl's vector environments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv

from fastrl.envs.action_masks import METHOD
from fastrl.errors import ArgumentError
from fastrl.vector.adapters import Adapter
from fastrl.vector.infos import separate
from fastrl.vector.vector_env import FastVectorEnv

Indices = int | Iterable[int] | None


class Sb3VecEnv(Adapter, VecEnv):
    """Steps a `FastVectorEnv` behind the interface of Stable-Baselines3; see `Adapter`."""

    def __init__(self, envs: FastVectorEnv) -> None:
        Adapter.__init__(self, envs, "Stable-Baselines3", AutoresetMode.SAME_STEP)
        VecEnv.__init__(
            self, envs.num_envs, envs.single_observation_space, envs.single_action_space
        )

    def reset(self) -> Any:
        """Start an episode in every environment; return the first observations.

        Seeds and options are those of `seed` and `set_options`, and are used once.

        Raises:
            ArgumentError: Environments have different options.
        """
        options = self._options[0]
        if any(each != options for each in self._options):
            raise ArgumentError("set_options: all environments must have the same options")
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
        per_env = separate(infos, self.num_envs)
        for index in np.flatnonzero(done).tolist():
            info = per_env[index]
            final, last = info.pop("final_info", {}), info.pop("final_obs")
            self.reset_infos[index] = info
            per_env[index] = {**final, "terminal_observation": last}
        for info, by_limit in zip(per_env, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = by_limit
        return observation, reward.astype(np.float32), done, per_env

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of some environments; for ``action_masks``, the masks.

        sb3-contrib's MaskablePPO reads it to find out whether there are masks.
        """
        if attr_name == METHOD:
            return self._masks(indices)
        return self.envs.call_some(attr_name, self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of some environments to the same value."""
        self.envs.set_some(attr_name, [value] * self.num_envs, self._chosen(indices))

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: Indices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of some environments; ``action_masks`` is that of `FastVectorEnv`."""
        if method_name == METHOD:
            return self._masks(indices)
        chosen = self._chosen(indices)
        return self.envs.call_some(method_name, chosen, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return whether some environments have a wrapper of a class."""
        chosen = self._chosen(indices)
        if self.envs.plan.native is not None:  # a batch has no wrappers
            return [False] * len(chosen)
        found = self.envs.parallel(is_wrapped, wrapper_class)
        return [found[index] for index in chosen]

    def _masks(self, indices: Indices) -> list[NDArray[np.bool_]]:
        """Return the masks of some environments, ``[choices] bool`` each.

        Raises:
            AttributeError: There are no masks.
        """
        if not self.envs.has_action_masks:
            raise AttributeError(METHOD)
        masks = self.envs.action_masks()
        return [masks[index] for index in self._chosen(indices)]

    def get_images(self) -> Sequence[Any]:
        """Return the frame of every environment."""
        return list(self.envs.render())


def to_sb3(envs: FastVectorEnv) -> Sb3VecEnv:
    """Return a vector environment of `fastrl.make_vec` as one of Stable-Baselines3.

    Episode statistics come from SB3's own ``VecMonitor`` around it, or from its ``Monitor`` among
    the ``wrappers`` of `fastrl.make_vec`.

    Raises:
        ArgumentError: ``envs`` has another type, its autoreset mode is not ``same_step``, or it
            returns tensors.
    """
    return Sb3VecEnv(envs)
