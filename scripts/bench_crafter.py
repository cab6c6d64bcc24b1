"""Compare fastrl's compiled Crafter with the original.

Random actions, pixels and resets included. On one core ``taskset -c 1 python
scripts/bench_crafter.py``. The original runs as its authors ship it, with its noise compiled where
numba is installed; ``--clock cpu`` leaves out what other processes take.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import crafter
from bench.native import measured, native_parser, redraw, report
from bench.rounds import CLOCKS, Steps, fastest
from bench.steppers import batched, random_actions, single
from command_line import printed, run

from fastrl.envs.batched_env import StepViews
from fastrl.envs.crafter import CrafterEnv
from fastrl.envs.crafter_native import CrafterBatch, CrafterOptions

_AHEAD = 512
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
    parser = native_parser(__doc__, sizes=[8, 32, 128], seconds=2.0)
    parser.add_argument("--name", default="one core", help="of the part of the report")
    options = parser.parse_args()
    if options.redraw:
        redraw(others, options.redraw)
        return
    rates = measured(_contestants(options.num_envs), options)
    reset_ms = _reset_ms(options.num_envs[0], CLOCKS[options.clock])
    report(options.name, rates, others, options, reset_ms=reset_ms, start_s=_start_s())


def others(rates: dict[str, list[float]]) -> dict[str, str]:
    """Return against what the rates are held, Craftax where a file has it: heading, contestant."""
    found = {"original": "original"}
    if any(name.startswith("craftax") for name in rates):
        found["Craftax"] = fastest(rates, "craftax")
    return found


def _contestants(sizes: list[int]) -> dict[str, Steps]:
    found = {"original": _original(), "fastrl.envs.crafter": single(CrafterEnv(), _AHEAD)}
    for size in sizes:
        found[f"compiled n={size}"] = batched(CrafterBatch(size), _AHEAD)
    symbolic = CrafterBatch(sizes[0], CrafterOptions(symbolic=True))
    return found | {f"compiled, symbolic n={sizes[0]}": batched(symbolic, _AHEAD)}


def _original() -> Steps:
    env = crafter.Env(seed=0)
    draw = random_actions(CrafterEnv().action_space, 1, _AHEAD)
    env.reset()

    def step() -> int:
        if env.step(int(draw()[0]))[2]:
            env.reset()
        return 1

    return step


def _reset_ms(num_envs: int, clock: Callable[[], float], repeats: int = 20) -> float:
    """Return the milliseconds that one environment's reset takes, first picture included."""
    env = CrafterBatch(num_envs)
    rows = StepViews.zeros(env.spec, num_envs).observation
    times = []
    for repeat in range(repeats):
        start = clock()
        env.reset(range(repeat * num_envs, (repeat + 1) * num_envs), rows)
        times.append((clock() - start) / num_envs * 1e3)
    return statistics.median(times)


def _start_s(repeats: int = 3) -> float:
    """Return the seconds from a fresh process to environments, compiled code on the disk."""
    return min(float(printed([sys.executable, "-c", _START])) for _ in range(repeats))


if __name__ == "__main__":
    run(main)
