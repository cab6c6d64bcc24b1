"""Compare fastrl's compiled Crafter with the original and, where it is installed, with Craftax.

Random actions, pixels and resets included. On one core ``taskset -c 1 python
scripts/bench_crafter.py``. The original runs as its authors ship it, with its noise compiled where
numba is installed; ``--clock cpu`` leaves out what other processes take. ``--craftax 128`` lets
Craftax-Classic with pixels take part.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Callable

import crafter
import numpy as np
from command_line import Parser, count, duration, output, whole
from native_bench import CLOCKS, Steps, best, measure, ratio, save, table

from fastrl.envs.batched_env import BatchedEnv, StepViews
from fastrl.envs.crafter import CrafterEnv
from fastrl.envs.crafter_native import CrafterBatch, CrafterOptions

_ACTIONS = 512
"""Batches of random actions that are drawn beforehand and used in turn."""

_START = """
import time
start = time.perf_counter()
from fastrl.envs.crafter_native import CrafterBatch
CrafterBatch(8)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure, print a table, and add it to the report."""
    options = _options()
    clock = CLOCKS[options.clock]
    contestants = _contestants(options.num_envs, craftax_envs=options.craftax)
    rates = measure(contestants, options.rounds, options.seconds, clock)
    reset_ms, start_s = _reset_ms(options.num_envs[0], clock), _start_s()
    others = {"original": "original"}
    if options.craftax:
        others["Craftax"] = best(rates, "craftax")
    lines = table(rates, others)
    lines += ["", f"A reset takes {reset_ms:.2f} ms; the start of a process {start_s:.2f} s."]
    print("\n".join(lines))
    if options.json:
        ours = best(rates, "compiled n")
        found = {
            "steps_per_s": rates,
            "ratios": {head: ratio(rates, ours, other) for head, other in others.items()},
            "reset_ms": reset_ms,
            "start_s": start_s,
        }
        save(options.json, options.name, found, lines)


def _options() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("-n", "--num-envs", nargs="+", type=count, default=[8, 32, 128])
    parser.add_argument("--craftax", type=whole, default=0, help="its envs; 0 leaves it out")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=duration, default=2.0, help="per measurement")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=output)
    parser.add_argument("--name", default="one core", help="of the part of the report")
    return parser.parse_args()


def _contestants(sizes: list[int], craftax_envs: int) -> dict[str, Steps]:
    contestants = {"original": _original(), "fastrl.envs.crafter": _wrapped()}
    if craftax_envs:
        if importlib.util.find_spec("craftax") is None:
            raise SystemExit("--craftax needs the packages jax and craftax")
        contestants[f"craftax n={craftax_envs}"] = _craftax(craftax_envs)
    for size in sizes:
        contestants[f"compiled n={size}"] = _batched(CrafterBatch(size))
    contestants[f"compiled, symbolic n={sizes[0]}"] = _batched(
        CrafterBatch(sizes[0], CrafterOptions(symbolic=True))
    )
    return contestants


def _original() -> Steps:
    env, rng = crafter.Env(seed=0), np.random.default_rng(0)
    env.reset()

    def step() -> int:
        if env.step(int(rng.integers(17)))[2]:
            env.reset()
        return 1

    return step


def _wrapped() -> Steps:
    env, rng = CrafterEnv(), np.random.default_rng(0)
    env.reset(seed=0)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(int(rng.integers(17)))
        if terminated or truncated:
            env.reset()
        return 1

    return step


def _batched(env: BatchedEnv) -> Steps:
    num_envs = env.num_envs
    views = _views(env)
    actions = np.random.default_rng(0).integers(17, size=(_ACTIONS, num_envs))
    env.reset(range(num_envs), views.observation)
    turn = 0

    def step() -> int:
        nonlocal turn
        views.action[0][:] = actions[turn % _ACTIONS]
        turn += 1
        env.step(views)
        return num_envs

    return step


def _views(env: BatchedEnv) -> StepViews:
    def rows() -> tuple[np.ndarray, ...]:
        leaves = env.spec.observation.values()
        return tuple(np.zeros((env.num_envs, *leaf.shape), leaf.numpy_dtype) for leaf in leaves)

    return StepViews(
        action=(np.zeros(env.num_envs, np.int64),),
        observation=rows(),
        reward=np.zeros(env.num_envs, np.float32),
        terminated=np.zeros(env.num_envs, np.bool_),
        truncated=np.zeros(env.num_envs, np.bool_),
        final_observation=rows(),
    )


def _craftax(num_envs: int) -> Steps:
    import jax
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name("Craftax-Classic-Pixels-v1", auto_reset=True)
    params = env.default_params
    reset = jax.jit(jax.vmap(env.reset, (0, None)))
    advance = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
    key = jax.random.PRNGKey(0)
    _, state = reset(jax.random.split(key, num_envs), params)

    def step() -> int:
        nonlocal key, state
        key, draw, move = jax.random.split(key, 3)
        actions = jax.random.randint(draw, (num_envs,), 0, 17)
        observation, state, *_ = advance(jax.random.split(move, num_envs), state, actions, params)
        jax.block_until_ready(observation)
        return num_envs

    return step


def _reset_ms(num_envs: int, clock: Callable[[], float], repeats: int = 20) -> float:
    """Return the milliseconds that one environment's reset takes, first picture included."""
    env = CrafterBatch(num_envs)
    rows = _views(env).observation
    times = []
    for repeat in range(repeats):
        start = clock()
        env.reset(range(repeat * num_envs, (repeat + 1) * num_envs), rows)
        times.append((clock() - start) / num_envs * 1e3)
    return statistics.median(times)


def _start_s(repeats: int = 3) -> float:
    """Return the seconds from a fresh process to environments, compiled code on the disk."""
    times = [
        float(
            subprocess.run([sys.executable, "-c", _START], check=True, capture_output=True).stdout
        )
        for _ in range(repeats)
    ]
    return min(times)


if __name__ == "__main__":
    from one_line import run

    run(main)
