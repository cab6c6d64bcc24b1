"""Measure three speeds of sampling and training over each of six sizes, and their limits.

    python scripts/cost_curves.py
    python scripts/cost_curves.py --sizes network observation --seconds 0.5
    python scripts/cost_curves.py --redraw

One size changes at a time: env workers, environments per worker, numbers of an observation, width
of the network, steps of a rollout and of an episode; the others stay at those of `BASE`. For each
value `fastrl throughput --train` measures the environments with random actions, with the policy,
and training by PPO from end to end, each beside the limit that it predicts from the times of bare
environments, policy and update. The environment computes for 20 µs per step and 400 µs per reset.
Writes results/cost_curves.json and imgs/cost_curves.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.results import Found, Row, load, quantity, replaced, select, write
from command_line import ROOT, Parser, count, duration, run

from fastrl.cli.inputs import check_output
from fastrl.config import load_config
from fastrl.system import usable_cores
from fastrl.throughput import Protocol, run_throughput
from fastrl.throughput.benchmark import COLUMNS

BASE: dict[str, Any] = {
    "env.id": "latency_envs:TimedEnv",
    "env.kwargs.step_s": 2e-5,
    "env.kwargs.steps_per_reset": 20,
    "env.kwargs.busy": True,
    "env.kwargs.length": 200,
    "env.kwargs.size": 16,
    "model.hidden_sizes": [64, 64],
    "sampler.envs_per_worker": 8,
    "sampler.rollout_length": 128,
    "algorithm.epochs": 4,
    "algorithm.minibatch_size": 256,
}
SIZES: dict[str, tuple[str, str, Sequence[int]]] = {
    "workers": ("env workers", "sampler.num_env_workers", [1, 2, 4]),
    "envs": ("environments per worker", "sampler.envs_per_worker", [1, 2, 8, 32, 128]),
    "observation": ("numbers of an observation", "env.kwargs.size", [4, 16, 64, 256, 1024]),
    "network": ("width of two hidden layers", "model.hidden_sizes", [16, 32, 64, 128, 256]),
    "rollout": ("steps of a rollout", "sampler.rollout_length", [16, 64, 256, 1024]),
    "episode": ("steps of an episode", "env.kwargs.length", [5, 20, 100, 500]),
}
"""Label, key and values of each size."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the files and print the rows; return the exit code."""
    args = _parser().parse_args(arguments)
    path = args.output / "results" / "cost_curves.json"
    picture = args.output / "imgs" / "cost_curves.png"
    for file in (path, picture):
        check_output("--output", file)
    if not args.redraw:
        rows = [row for size in args.sizes for row in _over(size, args)]
        kept = load(path)["results"]
        write({"results": replaced(kept, rows, ("size",))}, path)
    _draw(load(path), picture)
    return 0


def _over(size: str, args: argparse.Namespace) -> list[Row]:
    """Return a row for each value of a size and each of the three speeds."""
    _, key, values = SIZES[size]
    rows = []
    for value in values:
        given = {"sampler.num_env_workers": usable_cores(), **BASE}
        given[key] = [value, value] if key == "model.hidden_sizes" else value
        overrides = [f"{name}={setting}" for name, setting in given.items()]
        training = load_config(None, overrides)
        config = load_config(None, [*overrides, "sampler.mode=async"])
        protocol = Protocol(args.seconds, args.repeats, warm_up_s=0.3)
        columns = run_throughput(config, protocol, with_limit=True, train=training).columns
        for name in COLUMNS:
            found = columns[name].measurement
            limits = [limit.fps for limit in found.limits]
            row = {"size": size, "value": value, "column": name}
            rows.append({**row, **quantity("fps", found.fps), **quantity("limit_fps", limits)})
        speeds = (
            f"{row['fps_median']:,.0f} of {row['limit_fps_median']:,.0f}" for row in rows[-3:]
        )
        print(f"{SIZES[size][0]} {value}: {', '.join(speeds)}", flush=True)
    return rows


def _draw(found: Found, path: Path) -> None:
    panels = []
    for size, (label, _, values) in SIZES.items():
        lines: dict[str, plots.Line] = {}
        for column, name in COLUMNS.items():
            rows = select(found["results"], size=size, column=column)
            measured = [row["value"] for row in rows]
            lines[name] = measured, [row["fps_median"] for row in rows]
            lines[f"{plots.IDEAL}: {column}"] = measured, [row["limit_fps_median"] for row in rows]
        speed = "steps per second"
        panels.append(plots.Panel(f"over {label}", label, speed, lines, ticks=values))
    plots.curves([panels[:3], panels[3:]], path, f"{plots.where(found)}; ideal: the limits")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seconds", type=duration, default=1.0, help="length of a window (1)")
    parser.add_argument("--repeats", type=count, default=3, help="windows (3)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw the file")
    parser.add_argument("--output", type=Path, default=ROOT)
    return parser


if __name__ == "__main__":
    run(main)
