"""Families of fastrl's own environments, ``fastrl/HalfCheetah-v5`` and others.

Their ids are registered with gymnasium as soon as `fastrl.envs` is imported: `gymnasium.make_vec`
builds the batch, `gymnasium.make` a single environment that behaves alike. What implements them is
imported when the first one is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, cast

import gymnasium

from fastrl.envs.actions import ActionBounds
from fastrl.envs.batched_env import BatchedEnv
from fastrl.envs.family import Family, Vector, arrays
from fastrl.errors import EnvError

NAMESPACE = "fastrl/"

_WHOLE_NUMBERS = {"num_envs", "num_threads", "max_episode_steps"}


class NativeFamily(Family):
    """Environments of fastrl's own of one implementation.

    Attributes:
        module: Has ``build(name, num_envs, **kwargs)``, which returns a `BatchedEnv` and knows
            ``max_episode_steps``, ``randomize`` and ``action_bounds``; ``make_vec(name, num_envs,
            **kwargs)``, and ``make_single(name, **kwargs)``, whose time limit gymnasium keeps.
        ids: Ids, without the namespace: those of the environments of gymnasium that they equal.
    """

    prefix = NAMESPACE
    module: str
    ids: tuple[str, ...]

    def names(self) -> Sequence[str]:
        """Return the names; see `Family.names`."""
        return self.ids

    def name_of(self, env_id: str) -> str | None:
        """Return the id without the namespace; None for ids of others."""
        name = super().name_of(env_id)
        return name if name in self.ids else None

    def batch_id(self, env_id: str) -> str | None:
        """Return the id of the batch, for gymnasium's id as well."""
        name = env_id.removeprefix(NAMESPACE)
        return NAMESPACE + name if name in self.ids else None

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        randomize: Mapping[str, Any] | None = None,
        action_bounds: ActionBounds = "clip",
        **kwargs: Any,  # noqa: ANN401
    ) -> BatchedEnv:
        """Build n environments.

        Args:
            name: The id without the namespace.
            num_envs: Number of environments, n.
            max_episode_steps: Time limit in steps; None keeps the id's own.
            randomize: Distributions of parameters by name.
            action_bounds: How actions are kept inside a bounded ``Box``.
            **kwargs: Those of the environment.

        Raises:
            EnvError: An argument is unknown or does not fit.
        """
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        if randomize:
            kwargs["randomize"] = randomize
        given = {"num_envs": num_envs, "action_bounds": action_bounds, **kwargs}
        return cast("BatchedEnv", self.call("build", name, **given))

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vector:
        """Build a vector environment; see `Family.vector`."""
        given = {**kwargs, **arrays(each)}
        return cast("Vector", self.call("make_vec", name, num_envs=num_envs, **given))

    def call(self, function: str, name: str, /, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what a function of the module returns.

        Raises:
            EnvError: An argument is unknown or does not fit.
        """
        for argument in _WHOLE_NUMBERS & kwargs.keys():
            value = kwargs[argument]
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise EnvError(f"'{name}': {argument} must be a whole number, got {value!r}")
        return getattr(importlib.import_module(self.module), function)(name, **kwargs)

    def register(self) -> None:
        """Register every id with gymnasium; again does nothing."""
        for name in self.ids:
            if NAMESPACE + name in gymnasium.registry:
                continue
            original = gymnasium.spec(name)
            gymnasium.register(
                NAMESPACE + name,
                entry_point=partial(self.call, "make_single", name),
                vector_entry_point=partial(self.call, "make_vec", name),
                reward_threshold=original.reward_threshold,
                max_episode_steps=original.max_episode_steps,
            )
