"""Environments of other packages by a prefix: old gym's, vector environments, EnvPool's."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import gymnasium

from fastrl.arguments import nearest
from fastrl.envs.family import Family, Vector
from fastrl.envs.lookup import registered_spec, takes_argument
from fastrl.errors import EnvError


class OldGym(Family):
    """What old gym has registered, as ``gym:Id``; adapted when it is built."""

    prefix, batched = "gym:", False
    package, extra = "gym", "gym"

    def build(self, name: str, /, **kwargs: Any) -> Any:  # noqa: ANN401
        """Build a single environment."""
        gym = self.imported(self.prefix + name)
        if takes_argument(gym.make, "disable_env_checker"):
            kwargs.setdefault("disable_env_checker", True)
        return gym.make(name, **kwargs)


class VectorEnvs(Family):
    """The vector environment that gymnasium has registered under an id, as ``vector:Id``."""

    prefix, batched = "vector:", False

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        max_episode_steps: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vector:
        """Build a vector environment.

        Raises:
            EnvError: There is none under this id.
        """
        spec = registered_spec(name)
        if spec.vector_entry_point is None:
            raise EnvError(f"'{name}' has no vector environment of its own; write the id '{name}'")
        if max_episode_steps is not None:
            spec = dataclasses.replace(spec, max_episode_steps=max_episode_steps)
        if name.startswith("ALE/"):
            # By default each worker would start a thread per core.
            kwargs.setdefault("num_threads", 1)
        return gymnasium.make_vec(spec, num_envs, "vector_entry_point", **kwargs)


class EnvPool(Family):
    """EnvPool's vector environments, as ``envpool:Id``; they are seeded when they are built."""

    prefix, batched = "envpool:", False
    package, extra = "envpool", "compare"

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        seeds: Sequence[int] | None = None,
        max_episode_steps: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vector:
        """Build a vector environment.

        Raises:
            EnvError: EnvPool is not installed, or has no such environment.
        """
        envpool = self.imported(self.prefix + name)
        known = envpool.list_all_envs()
        if name not in known:
            raise EnvError(f"EnvPool has no environment '{name}'{nearest(name, known)}")
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        if seeds is not None:
            # EnvPool keeps seeds as int32.
            kwargs["seed"] = [int(seed) % 2**31 for seed in seeds]
        given = {"num_threads": 1, **kwargs, "num_envs": num_envs}
        return cast("Vector", envpool.make_gymnasium(name, **given))


OLD_GYM, VECTOR_ENVS, ENVPOOL = OldGym(), VectorEnvs(), EnvPool()
