"""Compare fastrl's MuJoCo environments with gymnasium's and EnvPool's, on the cores it may use.

Random actions, resets included. On one core
``taskset -c 1 python scripts/bench_mujoco.py --env HalfCheetah-v5``, on two
``python scripts/bench_mujoco.py --env HalfCheetah-v5 --threads 2``. EnvPool takes part in both its
modes; a step that it spends on a reset is not counted. On one thread fastrl takes part with and
without mjbatch, where that is installed.
"""

from __future__ import annotations

from unittest.mock import patch

import gymnasium
from bench.native import measured, native_parser, redraw, report
from bench.rounds import Steps, fastest
from bench.steppers import batched, envpool, has_envpool, single
from command_line import count, run

from fastrl.envs.mujoco import ENVIRONMENTS, build, simulations

_AHEAD = 64
"""Batches of random actions that are drawn beforehand and used in turn."""


def main() -> None:
    """Measure, print a table for each environment, and add it to the report."""
    parser = native_parser(__doc__, sizes=[32, 128], seconds=1.0)
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v5"], choices=list(ENVIRONMENTS))
    parser.add_argument("--threads", type=count, default=1, help="of fastrl and of EnvPool")
    options = parser.parse_args()
    if options.redraw:
        redraw(others, options.redraw)
        return
    for name in options.env:
        rates = measured(_contestants(name, options.num_envs, options.threads), options)
        report(f"{name}, {options.threads} thread(s)", rates, others, options)


def others(rates: dict[str, list[float]]) -> dict[str, str]:
    """Return against what the rates are held: heading and contestant."""
    found = {"gymnasium": "gymnasium"}
    if any(name.startswith("envpool") for name in rates):
        found["best EnvPool"] = fastest(rates, "envpool")
    return found


def _contestants(name: str, sizes: list[int], threads: int) -> dict[str, Steps]:
    limit = gymnasium.spec(name).max_episode_steps
    found = {"gymnasium": single(gymnasium.make(name).unwrapped, _AHEAD, limit)}
    for size in sizes:
        found[f"fastrl n={size}"] = batched(build(name, size, num_threads=threads), _AHEAD)
        if threads == 1 and simulations.accelerator() is not None:
            with patch.object(simulations, "accelerator", lambda: None):
                without = batched(build(name, size, num_threads=threads), _AHEAD)
            found[f"fastrl n={size}, without mjbatch"] = without
    for size in sizes if has_envpool(name) else ():
        found[f"envpool n={size}"] = envpool(name, size, size, threads, _AHEAD)
        half = size // 2
        found[f"envpool n={size}, async by {half}"] = envpool(name, size, half, threads, _AHEAD)
    return found


if __name__ == "__main__":
    run(main)
