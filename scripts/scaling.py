"""Measure how sampling scales with env workers, and with how long a step takes.

    python scripts/scaling.py --envs CartPole-v1 HalfCheetah-v5
    python scripts/scaling.py --latencies 1e-4 1e-3 --seconds 0.4

Frames per second over N = 1 … cores for each environment, and over the duration of a step for
environments that sleep, that compute and that are slow to reset, as curves against the ideal: N
times one worker, or N times what one bare environment does, resets included. Those that are
compared take turns. Writes results/scaling.json and imgs/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import latency_envs
import numpy as np
from command_line import MEASURED_MODEL, Parser, count, duration
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastrl.cli.arguments import check_output
from fastrl.config import load_config
from fastrl.cores import usable_cores
from fastrl.machine import circumstances
from fastrl.tuning import Candidate
from fastrl.tuning.workbench import Workbench

ROOT = Path(__file__).parents[1]
KINDS = ("sleeping", "computing", "slow_to_reset")
"""Environments of `latency_envs`."""
EPISODES = 4
"""That a window must hold, as all environments of a worker reset in the same step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the files, print tables; return the exit code."""
    args = _parser().parse_args(arguments)
    path, picture = args.output / "results" / "scaling.json", args.output / "imgs" / "scaling.png"
    for file in (path, picture):
        check_output("--output", file)
    found = json.loads(path.read_text()) if path.exists() and args.keep else {}
    workers = {env: _over_workers(env, args) for env in args.envs}
    latency = {kind: _over_latency(kind, args) for kind in (KINDS if args.latencies else ())}
    found = {
        "cores": usable_cores(),
        "workers": found.get("workers", {}) | workers,
        "latency": found.get("latency", {}) | latency,
        **circumstances(),
    }
    path.write_text(json.dumps(found, indent=2) + "\n")
    _draw(found, picture)
    return 0


def _over_workers(env: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    config = load_config(None, [f"env.id={env}", MEASURED_MODEL])
    first, *others = [
        Candidate(args.n, count) for count in range(1, (args.max_workers or usable_cores()) + 1)
    ]
    ones: list[float] = []
    rows = []
    with Workbench(config) as bench:
        bench.calibrate(first)
        if not others:
            ones.append(bench(first, args.seconds).fps)
        for candidate in others:
            fps, ratios = [], []
            for _ in range(args.repeats):
                ones.append(bench(first, args.seconds).fps)
                fps.append(bench(candidate, args.seconds).fps)
                ratios.append(fps[-1] / ones[-1])
            workers, speed_up = candidate.num_env_workers, statistics.median(ratios)
            rows.append({"N": workers, "fps": statistics.median(fps), "speed_up": speed_up})
            print(f"{env}: N={workers} {rows[-1]['fps']:,.0f} frames/s, {speed_up:.2f} × N=1")
    return [{"N": 1, "fps": statistics.median(ones), "speed_up": 1.0}, *rows]


def _over_latency(kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for step_s in args.latencies:
        overrides = [f"env.id=latency_envs:{kind}", f"env.kwargs.step_s={step_s}", MEASURED_MODEL]
        workers, bare_s = usable_cores(), _bare_step_s(kind, step_s)
        seconds = max(args.seconds, EPISODES * latency_envs.LENGTH * args.n * bare_s)
        with Workbench(load_config(None, overrides), limit_s=60.0) as bench:
            candidate = Candidate(args.n, workers)
            bench.calibrate(candidate)
            fps = [bench(candidate, seconds).fps for _ in range(args.repeats)]
        row = {"step_s": step_s, "fps": statistics.median(fps), "ideal_fps": workers / bare_s}
        rows.append(row)
        print(f"{kind}: {step_s * 1e6:,.0f} µs {row['fps']:,.0f} of {row['ideal_fps']:,.0f}")
    return rows


def _bare_step_s(kind: str, step_s: float) -> float:
    """Return the time per step of a single environment, resets included."""
    env = getattr(latency_envs, kind)(step_s)
    steps, start_s = 0, time.perf_counter()
    while time.perf_counter() < start_s + 0.3:
        env.reset()
        for _ in range(latency_envs.LENGTH):
            env.step(np.int64(0))
        steps += latency_envs.LENGTH
    return (time.perf_counter() - start_s) / steps


def _draw(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for env, rows in found["workers"].items():
        left.plot([r["N"] for r in rows], [r["speed_up"] for r in rows], "o-", label=env)
    most = max((r["N"] for rows in found["workers"].values() for r in rows), default=1)
    cores = found["cores"]
    left.plot([1, cores, most], [1, cores, cores], "k--", linewidth=1, label="ideal")
    left.set(
        xticks=range(1, most + 1),
        xlabel="env workers, N",
        ylabel="times N = 1",
        title=f"{cores} cores",
    )
    for kind, rows in found["latency"].items():
        times = [r["step_s"] * 1e6 for r in rows]
        right.loglog(times, [r["fps"] for r in rows], "o-", label=kind.replace("_", " "))
        colour = right.lines[-1].get_color()
        right.loglog(times, [r["ideal_fps"] for r in rows], "--", color=colour, linewidth=1)
    right.set(xlabel="duration of a step, µs", ylabel="frames per second")
    right.set_title(f"N = {cores}; dashed: ideal")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", nargs="*", default=["CartPole-v1", "HalfCheetah-v5"])
    parser.add_argument("--latencies", type=duration, nargs="*", default=[1e-5, 1e-4, 1e-3, 1e-2])
    parser.add_argument("--n", type=count, default=16, help="environments per worker")
    parser.add_argument("--max-workers", type=count, help="largest N; by default the cores")
    parser.add_argument("--seconds", type=duration, default=0.4, help="length of a window")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--keep", action="store_true", help="keep what else is in the file")
    parser.add_argument("--output", type=Path, default=ROOT)
    return parser


if __name__ == "__main__":
    from one_line import run

    run(main)
