"""Compare fastrl's compiled environments with the originals, and robots with EnvPool's.

    taskset -c 1 python scripts/bench_native.py HalfCheetah-v5 --json results/bench_mujoco.json
    python scripts/bench_native.py HalfCheetah-v5 Ant-v5 --threads 2
    taskset -c 1 python scripts/bench_native.py Crafter-v1 --json results/bench_crafter.json

Random actions, resets and pixels included. EnvPool takes part in both its modes; a step that it
spends on a reset is not counted. On one thread robots are stepped with and without mjbatch, where
that is installed. Crafter's original runs unchanged; a reset of one world and the
start of a process are timed as well. ``--clock cpu`` measures CPU time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import gymnasium
from bench.results import distinct, load, quantity, replaced, select, write
from bench.rounds import CLOCKS, Steps, fastest, interleaved, rate
from bench.steppers import batched, envpool, has_envpool, random_actions, single
from bench.tables import origin, rates_table
from command_line import Parser, count, duration, output, printed, run

from fastrl.envs.batched_env import StepViews
from fastrl.envs.mujoco import ENVIRONMENTS, build, simulations
from fastrl.system import circumstances

_CRAFTER = "Crafter-v1"
_AHEAD = 512
"""Batches of random actions that are drawn beforehand and used in turn."""
_PEERS = ("envpool", "mjbatch")
_RESETS, _STARTS = 20, 3
_START = """
import time
start = time.perf_counter()
from fastrl.envs.crafter_native import CrafterBatch
CrafterBatch(8)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure, print a table per environment and add it to the report."""
    options = _arguments()
    if options.redraw:
        found = load(options.redraw)
        options.redraw.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
        return
    for name in options.envs:
        if name == _CRAFTER:
            rates = _measured(_crafter(options.num_envs), options)
            _report(_CRAFTER, rates, options, **_crafter_times(options))
        else:
            rates = _measured(_robots(name, options.num_envs, options.threads), options)
            _report(f"{name}, {options.threads} thread(s)", rates, options)


def _arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    known = [*ENVIRONMENTS, _CRAFTER]
    add("envs", nargs="*", metavar="ID", help="HalfCheetah-v5 by default")
    add("-n", "--num-envs", nargs="+", type=count, default=[32, 128])
    add("--threads", type=count, default=1, help="threads of fastrl's robots and EnvPool")
    add("--rounds", type=count, default=5)
    add("--seconds", type=duration, default=1.0, help="per measurement")
    add("--clock", choices=list(CLOCKS), default="wall")
    add("--json", type=output, help="JSON file to add to; its .md lies beside it")
    add("--redraw", type=Path, help="measure nothing: write the .md of this JSON")
    options = parser.parse_args()
    options.envs = options.envs or ["HalfCheetah-v5"]
    if unknown := [name for name in options.envs if name not in known]:
        parser.error(f"no environment '{unknown[0]}'; there are {', '.join(known)}")
    return options


def _measured(steppers: Mapping[str, Steps], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the steps per second of each contestant in each round."""

    def turn(steps: Steps) -> float:
        steps()
        return rate(steps, options.seconds, CLOCKS[options.clock])

    turns = {name: partial(turn, steps) for name, steps in steppers.items()}
    return interleaved(turns, options.rounds)


def _robots(name: str, sizes: list[int], threads: int) -> dict[str, Steps]:
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


def _crafter(sizes: list[int]) -> dict[str, Steps]:
    # Importing crafter imports gym, which prints a warning.
    from fastrl.envs.crafter_native import CrafterBatch, CrafterOptions
    from fastrl.envs.crafter_native.worlds_by_id import CrafterEnv

    env = CrafterEnv()
    found = {"original": _original(env.action_space), "one world": single(env, _AHEAD)}
    for size in sizes:
        found[f"compiled n={size}"] = batched(CrafterBatch(size), _AHEAD)
    symbolic = CrafterBatch(sizes[0], CrafterOptions(symbolic=True))
    return found | {f"compiled, symbolic n={sizes[0]}": batched(symbolic, _AHEAD)}


def _original(action_space: gymnasium.Space[Any]) -> Steps:
    import crafter

    env = crafter.Env(seed=0)
    draw = random_actions(action_space, 1, _AHEAD)
    env.reset()

    def step() -> int:
        if env.step(int(draw()[0]))[2]:
            env.reset()
        return 1

    return step


def _crafter_times(options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds to reset one world and the seconds to start a process."""
    from fastrl.envs.crafter_native import CrafterBatch

    n, clock = options.num_envs[0], CLOCKS[options.clock]
    env = CrafterBatch(n)
    rows = StepViews.zeros(env.spec, n).observation
    times = []
    for number in range(_RESETS):
        start = clock()
        env.reset(range(number * n, (number + 1) * n), rows)
        times.append((clock() - start) / n * 1e3)
    starts = [float(printed([sys.executable, "-c", _START])) for _ in range(_STARTS)]
    return {"reset_ms": median(times), "start_s": min(starts)}


def _report(
    part: str, rates: Mapping[str, list[float]], options: argparse.Namespace, **of_part: float
) -> None:
    """Print the table of a part, and add it to the file ``options.json``."""
    rows = [
        {"part": part, "method": name, **quantity("steps_per_s", each), **of_part}
        | circumstances(*_PEERS)
        for name, each in rates.items()
    ]
    print(markdown({"results": rows}), flush=True)
    if options.json:
        found = load(options.json)
        found["results"] = replaced(found["results"], rows, ["part"])
        write(found, options.json, markdown, _PEERS)


def markdown(found: Mapping[str, Any]) -> str:
    """Return all parts of a file, each with its heading and table."""
    parts = []
    for part in distinct(found["results"], "part"):
        rows = select(found["results"], part=part)
        rates = {row["method"]: row["steps_per_s"] for row in rows}
        parts += [f"## {part}\n", rates_table(rates, _others(rates))]
        if "reset_ms" in rows[0]:
            took = f"A reset takes {rows[0]['reset_ms']:.2f} ms; "
            parts.append(f"{took}the start of a process {rows[0]['start_s']:.2f} s.\n")
        parts.append(f"{origin(rows[0])}\n")
    return "\n".join(parts)


def _others(rates: Mapping[str, list[float]]) -> dict[str, str]:
    """Return the contestants to compare with, by heading; files may have Craftax."""
    found = {name: name for name in ("gymnasium", "original") if name in rates}
    for label, kind in (("best EnvPool", "envpool"), ("Craftax", "craftax")):
        if any(name.startswith(kind) for name in rates):
            found[label] = fastest(rates, kind)
    return found


if __name__ == "__main__":
    run(main)
