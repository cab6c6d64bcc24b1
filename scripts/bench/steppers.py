"""Contestants that step environments with random actions."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from bench.rounds import Steps
from fastrl.envs.batched_env import BatchedEnv, StepViews

Draw = Callable[[], NDArray[Any]]
"""Function that returns one action per environment."""


def random_actions(space: spaces.Space[Any], num_envs: int, ahead: int = 0) -> Draw:
    """Return a function that draws random actions.

    Args:
        space: Action space of one environment, discrete or a box.
        num_envs: n.
        ahead: Number of batches to draw now and use in turn; 0 draws in every call.
    """
    rng = np.random.Generator(np.random.SFC64(0))

    def draw() -> NDArray[Any]:
        if isinstance(space, spaces.Discrete):
            count = np.float32(space.n)
            return (rng.random(num_envs, np.float32) * count).astype(space.dtype)
        width = space.high - space.low
        drawn = space.low + width * rng.random((num_envs, *space.shape), np.float32)
        return drawn.astype(space.dtype, copy=False)

    return itertools.cycle([draw() for _ in range(ahead)]).__next__ if ahead else draw


def single(env: gymnasium.Env[Any, Any], ahead: int = 0, limit: int | None = None) -> Steps:
    """Step one environment; ``limit`` truncates its episodes as a ``TimeLimit`` would."""
    env.reset(seed=0)
    draw, age = random_actions(env.action_space, 1, ahead), 0

    def step() -> int:
        nonlocal age
        age += 1
        _, _, terminated, truncated, _ = env.step(draw()[0])
        if terminated or truncated or age == limit:
            age = 0
            env.reset()
        return 1

    return step


def vector(env: VectorEnv[Any, Any, Any]) -> Steps:
    """Step a gymnasium vector environment."""
    draw = random_actions(env.single_action_space, env.num_envs)
    env.reset(seed=0)

    def step() -> int:
        env.step(draw())
        return env.num_envs

    return step


def batched(env: BatchedEnv, ahead: int = 0) -> Steps:
    """Step one of fastrl's batched environments, as an env worker does."""
    draw = random_actions(env.spec.action_space, env.num_envs, ahead)
    seen = StepViews.zeros(env.spec, env.num_envs)
    env.reset(range(env.num_envs), seen.observation)
    (action,) = seen.action

    def step() -> int:
        action[:] = draw()
        env.step(seen)
        return env.num_envs

    return step


def has_envpool(name: str) -> bool:
    """Return whether EnvPool is installed and has an environment."""
    if find_spec("envpool") is None:
        return False
    import envpool

    return name in envpool.list_all_envs()


def envpool(name: str, num_envs: int, batch_size: int, threads: int, ahead: int = 0) -> Steps:
    """Step EnvPool; a batch below ``num_envs`` returns the environments that are ready first.

    A step that it spends on a reset is not counted.
    """
    import envpool as package

    with warnings.catch_warnings():
        # EnvPool's warnings about its own spaces, whose bounds lose precision.
        warnings.simplefilter("ignore")
        env = package.make_gymnasium(
            name, num_envs=num_envs, batch_size=batch_size, num_threads=threads, seed=0
        )
        draw = random_actions(env.action_space, batch_size, ahead)
        env.async_reset()

    def step() -> int:
        *_, info = env.recv()
        env.send(draw(), info["env_id"])
        return int(np.count_nonzero(info["elapsed_step"]))

    return step
