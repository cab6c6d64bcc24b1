"""Ways to step many environments, and how long a reset and a step of all of them take."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import fastrl
from bench.rounds import rate

_SAME_STEP = AutoresetMode.SAME_STEP


def make_one(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build one environment with the usual wrappers."""
    if env_id.startswith("ALE/"):
        return _atari(env_id)
    if env_id not in gymnasium.registry:
        import fastrl.envs.env_factory  # noqa: F401 - which registers some
    return gymnasium.make(env_id)


def _atari(env_id: str) -> gymnasium.Env[Any, Any]:
    """Build an Atari game with the standard preprocessing by gymnasium's wrappers."""
    import ale_py
    from gymnasium import wrappers

    from fastrl.envs.atari import FireReset

    gymnasium.register_envs(ale_py)
    env = FireReset(gymnasium.make(env_id, frameskip=1))
    clipped = wrappers.TransformReward(wrappers.AtariPreprocessing(env), np.sign)
    return wrappers.FrameStackObservation(clipped, 4)


class Sequential:
    """Plain loop over the environments."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._envs = [make_one(env_id) for _ in range(num_envs)]

    def reset(self, seed: int) -> Any:
        """Start an episode in every environment."""
        return np.stack([env.reset(seed=seed + index)[0] for index, env in enumerate(self._envs)])

    def step(self, actions: Any) -> Any:
        """Step the environments one after the other."""
        seen, rewards, ends = [], [], []
        for env, action in zip(self._envs, actions, strict=True):
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
            seen.append(observation)
            rewards.append(reward)
            ends.append((terminated, truncated))
        return np.stack(seen), np.array(rewards), np.array(ends)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


def _gymnasium(kind: Any, env_id: str, num_envs: int) -> Any:
    return kind([partial(make_one, env_id)] * num_envs, autoreset_mode=_SAME_STEP)


def _sb3(kind: str, env_id: str, num_envs: int) -> Any:
    from stable_baselines3.common import vec_env

    options = {"start_method": "fork"} if kind == "SubprocVecEnv" else {}
    return getattr(vec_env, kind)([partial(make_one, env_id)] * num_envs, **options)


def _fastrl(backend: str, env_id: str, num_envs: int) -> Any:
    return fastrl.make_vec(env_id, num_envs, backend=backend, autoreset=_SAME_STEP, timeout_s=60)


METHODS: dict[str, Callable[[str, int], Any]] = {
    "sequential": Sequential,
    "gymnasium sync": partial(_gymnasium, SyncVectorEnv),
    "gymnasium async": partial(_gymnasium, AsyncVectorEnv),
    "SB3 dummy": partial(_sb3, "DummyVecEnv"),
    "SB3 subproc": partial(_sb3, "SubprocVecEnv"),
    **{
        f"fastrl {backend}": partial(_fastrl, backend)
        for backend in ("serial", "threads", "processes", "native", "auto")
    },
}
"""Functions that build n environments with ``reset``, ``step`` and ``close``, by method."""


def measure(env_id: str, method: str, num_envs: int, seconds: float) -> dict[str, Any]:
    """Return the seconds to build, reset and step all environments, and the backend if any.

    A warm-up of a fifth of ``seconds`` comes before the steps that are measured.

    Raises:
        FastrlError: The method cannot step this environment here.
    """
    actions = itertools.cycle(_actions(env_id, num_envs))
    start_s = time.perf_counter()
    envs = METHODS[method](env_id, num_envs)
    built_s = time.perf_counter()

    def reset() -> None:
        if hasattr(envs, "seed") and not isinstance(envs, gymnasium.vector.VectorEnv):
            envs.seed(0)
            envs.reset()
        else:
            envs.reset(seed=0)

    def step() -> int:
        envs.step(next(actions))
        return 1

    try:
        reset()
        before_s = time.perf_counter()
        reset()
        reset_s = time.perf_counter() - before_s
        gc.collect()
        rate(step, seconds / 5)
        step_s = 1 / rate(step, seconds)
    finally:
        envs.close()
    times = {"start_s": built_s - start_s, "reset_s": reset_s, "step_s": step_s}
    return times | {"backend": getattr(envs, "backend", "")}


def _actions(env_id: str, num_envs: int) -> list[Any]:
    """Return 20 batches of random actions."""
    env = make_one(env_id)
    space = gymnasium.vector.utils.batch_space(env.action_space, num_envs)
    env.close()
    space.seed(0)
    return [space.sample() for _ in range(20)]
