"""Compare fastrl's MuJoCo environments with gymnasium's and EnvPool's, on the cores it may use.

Random actions, resets included. On one core
``taskset -c 1 python scripts/bench_mujoco.py --env HalfCheetah-v5``, on two
``python scripts/bench_mujoco.py --env HalfCheetah-v5 --threads 2``. EnvPool takes part in both its
modes; a step that it spends on a reset is not counted. On one thread fastrl takes part with and
without mjbatch, where that is installed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from types import ModuleType
from unittest.mock import patch

import gymnasium
import numpy as np
from command_line import Parser, count, duration, output
from native_bench import CLOCKS, best, measure, ratio, save, table

from fastrl.envs.batched_env import StepViews
from fastrl.envs.mujoco import ENVIRONMENTS, build, simulations

_ACTIONS = 64
"""Batches of random actions that are drawn beforehand and used in turn."""


def main() -> None:
    """Measure, print a table for each environment, and add it to the report."""
    options = _options()
    for name in options.env:
        contestants = _contestants(name, options.num_envs, options.threads)
        rates = measure(contestants, options.rounds, options.seconds, CLOCKS[options.clock])
        ours = best(rates, "fastrl")
        others = {"gymnasium": "gymnasium"}
        if any(label.startswith("envpool") for label in rates):
            others["best EnvPool"] = best(rates, "envpool")
        lines = table(rates, others)
        print("\n".join([f"{name}, {options.threads} thread(s)", *lines]), flush=True)
        if options.json:
            found = {
                "steps_per_s": rates,
                "ratios": {head: ratio(rates, ours, other) for head, other in others.items()},
            }
            save(options.json, f"{name}, {options.threads} thread(s)", found, lines)


def _options() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v5"], choices=list(ENVIRONMENTS))
    parser.add_argument("-n", "--num-envs", nargs="+", type=count, default=[32, 128])
    parser.add_argument("--threads", type=count, default=1, help="of fastrl and of EnvPool")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=duration, default=1.0, help="per measurement")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=output)
    return parser.parse_args()


def _contestants(name: str, sizes: list[int], threads: int) -> dict[str, Callable[[], int]]:
    contestants = {"gymnasium": _gymnasium(name)}
    for size in sizes:
        contestants[f"fastrl n={size}"] = _fastrl(name, size, threads)
        if threads == 1 and simulations.accelerator() is not None:
            with patch.object(simulations, "accelerator", lambda: None):
                contestants[f"fastrl n={size}, without mjbatch"] = _fastrl(name, size, threads)
    try:
        import envpool
    except ImportError:
        return contestants
    if name in envpool.list_all_envs():
        for size in sizes:
            contestants[f"envpool n={size}"] = _envpool(envpool, name, size, size, threads)
            half = f"envpool n={size}, async by {size // 2}"
            contestants[half] = _envpool(envpool, name, size, size // 2, threads)
    return contestants


def _gymnasium(name: str) -> Callable[[], int]:
    """Return a function that takes some steps of one bare environment, and says how many."""
    spec = gymnasium.spec(name)
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    actions = list(_random_actions(env.action_space, 1)[:, 0])
    age = 0

    def steps() -> int:
        nonlocal age
        for action in actions:
            age += 1
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated or age == spec.max_episode_steps:
                age = 0
                env.reset()
        return len(actions)

    return steps


def _fastrl(name: str, size: int, threads: int) -> Callable[[], int]:
    env = build(name, size, num_threads=threads)
    rows = (size, *env.spec.observation_space.shape)
    batches = [
        StepViews(
            action=(action,),
            observation=(np.zeros(rows, np.float32),),
            reward=np.zeros(size, np.float32),
            terminated=np.zeros(size, np.bool_),
            truncated=np.zeros(size, np.bool_),
            final_observation=(np.zeros(rows, np.float32),),
        )
        for action in _random_actions(env.spec.action_space, size)
    ]
    env.reset(range(size), batches[0].observation)
    turn = 0

    def steps() -> int:
        nonlocal turn
        turn += 1
        env.step(batches[turn % _ACTIONS])
        return size

    return steps


def _envpool(
    envpool: ModuleType, name: str, size: int, batch: int, threads: int
) -> Callable[[], int]:
    with warnings.catch_warnings():
        # Of its own spaces, whose bounds lose precision.
        warnings.simplefilter("ignore")
        env = envpool.make_gymnasium(
            name, num_envs=size, batch_size=batch, num_threads=threads, seed=0
        )
    actions = _random_actions(env.action_space, batch).astype(env.action_space.dtype)
    env.async_reset()
    turn = 0

    def steps() -> int:
        nonlocal turn
        turn += 1
        *_, info = env.recv()
        env.send(actions[turn % _ACTIONS], info["env_id"])
        return int(np.count_nonzero(info["elapsed_step"]))

    return steps


def _random_actions(space: gymnasium.spaces.Box, size: int) -> np.ndarray:
    shape = (_ACTIONS, size, *space.shape)
    return np.random.default_rng(0).uniform(space.low, space.high, shape).astype(np.float32)


if __name__ == "__main__":
    from one_line import run

    run(main)
