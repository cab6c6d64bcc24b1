"""Run by mpiexec: rank 0 hands out actions and gathers results, every other rank has one env."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from vector_bench.one_env import make_one


def main() -> None:
    """Print the seconds of a reset and of a step."""
    world = MPI.COMM_WORLD
    env_id, seconds = sys.argv[1], float(sys.argv[2])
    if world.Get_rank() > 0:
        serve(world, env_id)
        return
    num_envs = world.Get_size() - 1
    space = make_one(env_id).action_space
    actions = [space.sample() for _ in range(num_envs)]

    def ask(orders: list[Any]) -> Any:  # noqa: ANN401
        world.scatter([None, *orders])
        parts = world.gather(None)[1:]
        return np.stack([part[0] for part in parts])

    ask(["reset"] * num_envs)  # waits until all have been built
    start = time.perf_counter()
    ask(["reset"] * num_envs)
    reset_s = time.perf_counter() - start
    for _ in range(3):
        ask(actions)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        ask(actions)
        steps += 1
    step_s = (time.perf_counter() - start) / steps
    world.scatter([None] * (num_envs + 1))
    print(reset_s, step_s)


def serve(world: Any, env_id: str) -> None:  # noqa: ANN401
    """Step one environment for rank 0 until it says nothing more."""
    env = make_one(env_id)
    while (order := world.scatter(None)) is not None:
        if isinstance(order, str):
            world.gather((env.reset(seed=0)[0], 0.0, False, False))
            continue
        observation, reward, terminated, truncated, _ = env.step(order)
        if terminated or truncated:
            observation, _ = env.reset()
        world.gather((observation, reward, terminated, truncated))


if __name__ == "__main__":
    main()
