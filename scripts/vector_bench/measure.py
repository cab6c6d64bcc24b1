"""How long a reset and a step of n environments take."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import gymnasium

from vector_bench.methods import METHODS, MPI, Mpi
from vector_bench.one_env import make_one


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        start_s: Seconds to build the environments.
        reset_s: Seconds of a reset of all of them.
        step_s: Seconds of a step of all of them, mean over the measured time.
        steps: How many steps that was.
    """

    start_s: float
    reset_s: float
    step_s: float
    steps: int


def measure(env_id: str, method: str, num_envs: int, seconds: float) -> Timing:
    """Measure one method.

    Args:
        env_id: Which environment.
        method: A key of `METHODS`, or `MPI`.
        num_envs: How many environments.
        seconds: Longest time to step for, besides a warm-up of a fifth of it.
    """
    if method == MPI:
        mpi = Mpi(env_id, num_envs, seconds)
        return Timing(0.0, mpi.reset_s, mpi.step_s, 0)
    actions = sample_actions(env_id, num_envs)
    start = time.perf_counter()
    envs = METHODS[method](env_id, num_envs)
    start_s = time.perf_counter() - start
    try:
        envs.reset()
        start = time.perf_counter()
        envs.reset()
        reset_s = time.perf_counter() - start
        gc.collect()
        _step_for(envs.step, actions, seconds / 5)
        step_s, steps = _step_for(envs.step, actions, seconds)
    finally:
        envs.close()
    return Timing(start_s, reset_s, step_s, steps)


def sample_actions(env_id: str, num_envs: int) -> list[object]:
    """Return 20 batches of random actions."""
    env = make_one(env_id)
    space = gymnasium.vector.utils.batch_space(env.action_space, num_envs)
    env.close()
    space.seed(0)
    return [space.sample() for _ in range(20)]


def _step_for(step, actions, seconds):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    steps, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        step(actions[steps % len(actions)])
        steps += 1
    return (now - start) / steps, steps
