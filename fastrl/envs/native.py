"""Environments of fastrl's own, ``fastrl/HalfCheetah-v5`` and others: stepped n at a time.

Their ids are registered with gymnasium as soon as `fastrl.envs` is imported: `gymnasium.make_vec`
builds the batch, `gymnasium.make` a single environment that behaves alike. What implements them is
imported when the first one is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, cast

import gymnasium

from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import EnvError

NAMESPACE = "fastrl/"

_WHOLE_NUMBERS = {"num_envs", "num_threads", "max_episode_steps"}


@dataclass(frozen=True)
class Family:
    """Environments of one implementation.

    Attributes:
        module: Has ``build(name, num_envs, **kwargs)``, which returns a `BatchedEnv` and knows
            ``max_episode_steps``, ``randomize`` and ``action_bounds``; ``make_vec(name, num_envs,
            **kwargs)``, and ``make_single(name, **kwargs)``, whose time limit gymnasium keeps.
        names: Ids, without the namespace.
    """

    module: str
    names: tuple[str, ...]

    def call(self, function: str, name: str, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what a function of the module returns.

        Raises:
            EnvError: An argument is unknown or does not fit.
        """
        for argument in _WHOLE_NUMBERS & kwargs.keys():
            value = kwargs[argument]
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise EnvError(f"'{name}': {argument} must be a whole number, got {value!r}")
        return getattr(importlib.import_module(self.module), function)(name, **kwargs)


FAMILIES = (
    Family(
        "fastrl.envs.classic_control.catalogue",
        (
            "Acrobot-v1",
            "CartPole-v1",
            "MountainCar-v0",
            "MountainCarContinuous-v0",
            "Pendulum-v1",
        ),
    ),
    Family("fastrl.envs.crafter_native.catalogue", ("Crafter-v1",)),
    Family(
        "fastrl.envs.mujoco.catalogue",
        (
            "Ant-v4",
            "Ant-v5",
            "HalfCheetah-v4",
            "HalfCheetah-v5",
            "Hopper-v4",
            "Hopper-v5",
            "Humanoid-v4",
            "Humanoid-v5",
            "HumanoidStandup-v4",
            "HumanoidStandup-v5",
            "InvertedDoublePendulum-v4",
            "InvertedDoublePendulum-v5",
            "InvertedPendulum-v4",
            "InvertedPendulum-v5",
            "Pusher-v5",
            "Reacher-v4",
            "Reacher-v5",
            "Swimmer-v4",
            "Swimmer-v5",
            "Walker2d-v4",
            "Walker2d-v5",
        ),
    ),
)


def is_native(name: object) -> bool:
    """Return whether ``name`` is the id of one of fastrl's own environments."""
    return any(name == known for known, _ in _ids())


def build(name: str, num_envs: int, **kwargs: Any) -> BatchedEnv:  # noqa: ANN401
    """Build n environments by id.

    Args:
        name: The id, with its namespace.
        num_envs: Number of environments, n.
        **kwargs: Those of the environment, ``max_episode_steps``, ``randomize`` and
            ``action_bounds``.

    Raises:
        EnvError: An argument is unknown or does not fit.
    """
    family = next(family for known, family in _ids() if known == name)
    short = name.removeprefix(NAMESPACE)
    return cast("BatchedEnv", family.call("build", short, num_envs=num_envs, **kwargs))


def register() -> None:
    """Register every id with gymnasium; again does nothing."""
    for name, family in _ids():
        if name in gymnasium.registry:
            continue
        short = name.removeprefix(NAMESPACE)
        original = gymnasium.spec(short)
        gymnasium.register(
            name,
            entry_point=partial(family.call, "make_single", short),
            vector_entry_point=partial(family.call, "make_vec", short),
            reward_threshold=original.reward_threshold,
            max_episode_steps=original.max_episode_steps,
        )


def _ids() -> Iterator[tuple[str, Family]]:
    for family in FAMILIES:
        for name in family.names:
            yield NAMESPACE + name, family
