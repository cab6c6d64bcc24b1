"""Measure how sampling scales with env workers, and with how long a step takes.

    python scripts/scaling.py --envs CartPole-v1 HalfCheetah-v5
    python scripts/scaling.py --latencies 1e-4 1e-3 --seconds 0.4
    python scripts/scaling.py --redraw

Frames per second over N = 1 … cores for each environment, and over the duration of a step for
environments that sleep, that compute and that are slow to reset, as curves against the ideal: N
times one worker, or N times what one bare environment does, resets included. Those that are
compared take turns. Writes results/scaling.json and imgs/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import latency_envs
import numpy as np
from bench import plots
from bench.results import Found, Row, distinct, load, quantity, replaced, select, write
from bench.rounds import interleaved
from command_line import MEASURED_MODEL, ROOT, Parser, count, duration, run

from fastrl.cli.inputs import check_output
from fastrl.config import load_config
from fastrl.system import usable_cores
from fastrl.tuning import Candidate
from fastrl.tuning.workbench import Workbench

KINDS: dict[str, dict[str, Any]] = {
    "sleeping": {},
    "computing": {"busy": True},
    "slow_to_reset": {"busy": True, "steps_per_reset": latency_envs.LENGTH},
}
"""Arguments of `latency_envs.TimedEnv`."""
EPISODES = 4
"""That a window must hold, as all environments of a worker reset in the same step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the files, print tables; return the exit code."""
    args = _parser().parse_args(arguments)
    path, picture = args.output / "results" / "scaling.json", args.output / "imgs" / "scaling.png"
    for file in (path, picture):
        check_output("--output", file)
    if not args.redraw:
        rows = [row for env in args.envs for row in _over_workers(env, args)]
        for kind in KINDS if args.latencies else ():
            rows += _over_latency(kind, args)
        kept = load(path)["results"] if args.keep else []
        write({"results": replaced(kept, rows, ("env", "measured"))}, path)
    _draw(load(path), picture)
    return 0


def _over_workers(env: str, args: argparse.Namespace) -> list[Row]:
    config = load_config(None, [f"env.id={env}", MEASURED_MODEL])
    most = args.max_workers or usable_cores()
    first, *others = [Candidate(args.n, workers) for workers in range(1, most + 1)]
    ones: list[float] = []
    rows = []
    with Workbench(config) as bench:

        def fps(candidate: Candidate) -> float:
            return bench(candidate, args.seconds).fps

        bench.calibrate(first)
        for candidate in others or [first]:
            turns = {each: partial(fps, each) for each in (first, candidate)}
            found = interleaved(turns, args.repeats)
            ones += found[first]
            ratios = [mine / one for mine, one in zip(found[candidate], found[first], strict=True)]
            rows.append(_row(env, candidate.num_env_workers, found[candidate], ratios))
    rows = [_row(env, 1, ones, [1.0]), *(rows if others else [])]
    for row in rows:
        speed_up = f"{row['speed_up_median']:.2f} × N=1"
        print(f"{env}: N={row['num_env_workers']} {row['fps_median']:,.0f} frames/s, {speed_up}")
    return rows


def _row(env: str, workers: int, fps: list[float], ratios: list[float]) -> Row:
    row = {"env": env, "measured": "workers", "num_env_workers": workers}
    return {**row, **quantity("fps", fps), **quantity("speed_up", ratios)}


def _over_latency(kind: str, args: argparse.Namespace) -> list[Row]:
    rows = []
    for step_s in args.latencies:
        kwargs = {"step_s": step_s, **KINDS[kind]}
        overrides = [f"env.kwargs.{key}={json.dumps(value)}" for key, value in kwargs.items()]
        overrides += ["env.id=latency_envs:TimedEnv", MEASURED_MODEL]
        workers, bare_s = usable_cores(), _bare_step_s(latency_envs.TimedEnv(**kwargs))
        seconds = max(args.seconds, EPISODES * latency_envs.LENGTH * args.n * bare_s)
        with Workbench(load_config(None, overrides), limit_s=60.0) as bench:
            candidate = Candidate(args.n, workers)
            bench.calibrate(candidate)
            fps = [bench(candidate, seconds).fps for _ in range(args.repeats)]
        row = {"env": kind, "measured": "latency", "num_env_workers": workers, "step_s": step_s}
        rows.append({**row, **quantity("fps", fps), "ideal_fps": workers / bare_s})
        fps_of_ideal = f"{rows[-1]['fps_median']:,.0f} of {rows[-1]['ideal_fps']:,.0f}"
        print(f"{kind}: {step_s * 1e6:,.0f} µs {fps_of_ideal}")
    return rows


def _bare_step_s(env: latency_envs.TimedEnv) -> float:
    """Return the time per step of a single environment, resets included."""
    steps, start_s = 0, time.perf_counter()
    while time.perf_counter() < start_s + 0.3:
        env.reset()
        for _ in range(latency_envs.LENGTH):
            env.step(np.int64(0))
        steps += latency_envs.LENGTH
    return (time.perf_counter() - start_s) / steps


def _draw(found: Found, path: Path) -> None:
    workers = select(found["results"], measured="workers")
    cores, numbers = found["machine"]["cores"], sorted(set(distinct(workers, "num_env_workers")))
    speed_ups: dict[str, plots.Line] = {
        env: _line(select(workers, env=env), "num_env_workers", "speed_up_median")
        for env in distinct(workers, "env")
    }
    speed_ups["ideal"] = (numbers, [min(cores, number) for number in numbers])
    latency: dict[str, plots.Line] = {}
    for kind in KINDS:
        rows = select(found["results"], measured="latency", env=kind)
        name = kind.replace("_", " ")
        latency[name] = _line(rows, "step_s", "fps_median")
        latency[f"ideal: {name}"] = _line(rows, "step_s", "ideal_fps")
    fps = "frames per second"
    panels = [
        plots.Panel("over env workers", "env workers, N", "times N = 1", speed_ups, log=False),
        plots.Panel(f"N = {cores}", "duration of a step, s", fps, latency),
    ]
    plots.curves([panels], path, plots.where(found))


def _line(rows: Sequence[Row], x: str, y: str) -> plots.Line:
    return [row[x] for row in rows], [row[y] for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--envs", nargs="*", default=["CartPole-v1", "HalfCheetah-v5"])
    parser.add_argument("--latencies", type=duration, nargs="*", default=[1e-5, 1e-4, 1e-3, 1e-2])
    parser.add_argument("--n", type=count, default=16, help="environments per worker")
    parser.add_argument("--max-workers", type=count, help="largest N; by default the cores")
    parser.add_argument("--seconds", type=duration, default=0.4, help="length of a window")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--keep", action="store_true", help="keep what else is in the file")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw the file")
    parser.add_argument("--output", type=Path, default=ROOT)
    return parser


if __name__ == "__main__":
    run(main)
