"""Which backend pays: one environment is timed, and the cost of handing over set against it."""

from __future__ import annotations

import time

from fastrl.cores import usable_cores
from fastrl.vector.spec import Env, VectorPlan

HAND_OVER_S = 200e-6
"""What a step of worker processes costs besides the environments, on a 2-core AMD EPYC."""

SLOWDOWN = 1.6
"""How much slower environments step while every core is busy, on the same machine: its virtual
cores share what they have. Where cores are whole, `auto` is somewhat too slow to leave one process.
"""

_BUDGET_S = 0.05
_MAX_STEPS = 500


def choose_backend(plan: VectorPlan) -> str:
    """Return ``processes`` where they pay for a plan, else ``serial``.

    One environment is built here, timed for a twentieth of a second with random actions, and
    closed.
    """
    workers = min(usable_cores(), plan.num_envs)
    if workers == 1:
        return "serial"
    env = plan.instance(0).build()
    try:
        alone_s = seconds_per_step(env) * plan.num_envs
    finally:
        env.close()
    together_s = SLOWDOWN * alone_s / workers + HAND_OVER_S
    return "processes" if together_s < alone_s else "serial"


def seconds_per_step(env: Env) -> float:
    """Return how long a step takes, resets included."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(50)]
    env.step(actions[0])
    env.reset()
    steps, start = 0, time.perf_counter()
    while steps < _MAX_STEPS and time.perf_counter() - start < _BUDGET_S:
        _, _, terminated, truncated, _ = env.step(actions[steps % len(actions)])
        steps += 1
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - start) / steps
