"""Compare fastrl's MuJoCo environments with gymnasium's and EnvPool's, on the cores it may use.

Every round measures each contestant once, in turn, with random actions and resets included; only
ratios within a round count, as the speed of a machine drifts. Run it on one core with
``taskset -c 1 python scripts/bench_mujoco.py --env HalfCheetah-v5``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np

from fastrl.envs.batched_env import StepViews
from fastrl.envs.mujoco import ENVIRONMENTS, build

_ACTIONS = 64
"""Batches of random actions that are drawn beforehand and used in turn."""


def main() -> None:
    """Measure, and print a table of ratios."""
    options = _options()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    results = []
    for name in options.env:
        contestants = _contestants(name, options.num_envs, options.threads)
        rates: dict[str, list[float]] = {label: [] for label in contestants}
        for _ in range(options.rounds):
            for label, steps in contestants.items():
                rates[label].append(_rate(steps, options.seconds, clock))
        results.append({"env": name, "steps_per_s": rates})
        _print(name, rates)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v5"], choices=list(ENVIRONMENTS))
    parser.add_argument("-n", "--num-envs", nargs="+", type=int, default=[8, 32, 64, 128, 256])
    parser.add_argument("--threads", type=int, default=1, help="of fastrl and of EnvPool")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _contestants(name: str, sizes: list[int], threads: int) -> dict[str, Callable[[], int]]:
    contestants = {"gymnasium": _gymnasium(name)}
    for size in sizes:
        contestants[f"fastrl n={size}"] = _fastrl(name, size, threads)
    try:
        import envpool
    except ImportError:
        return contestants
    known = envpool.list_all_envs()
    if name in known:
        for size in sizes:
            contestants[f"envpool n={size}"] = _envpool(envpool, name, size, threads)
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


def _envpool(envpool: ModuleType, name: str, size: int, threads: int) -> Callable[[], int]:
    env = envpool.make_gymnasium(name, num_envs=size, num_threads=threads, seed=0)
    actions = _random_actions(env.action_space, size).astype(env.action_space.dtype)
    env.reset()
    turn = 0

    def steps() -> int:
        nonlocal turn
        turn += 1
        env.step(actions[turn % _ACTIONS])
        return size

    return steps


def _random_actions(space: gymnasium.spaces.Box, size: int) -> np.ndarray:
    shape = (_ACTIONS, size, *space.shape)
    return np.random.default_rng(0).uniform(space.low, space.high, shape).astype(np.float32)


def _rate(steps: Callable[[], int], seconds: float, clock: Callable[[], float]) -> float:
    """Return steps per second over about ``seconds``."""
    steps()
    taken, start = 0, clock()
    while (elapsed := clock() - start) < seconds:
        taken += steps()
    return taken / elapsed


def _print(name: str, rates: dict[str, list[float]]) -> None:
    print(f"{name}: median over {len(rates['gymnasium'])} rounds")
    for label, each in rates.items():
        against = [f"{_ratio(each, rates['gymnasium']):5.2f} x gymnasium"]
        peer = rates.get(label.replace("fastrl", "envpool"))
        if peer is not None and peer is not each:
            against.append(f"{_ratio(each, peer):5.2f} x envpool")
        print(f"  {label:16s} {statistics.median(each):10,.0f} steps/s", *against)


def _ratio(rates: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


if __name__ == "__main__":
    main()
