"""Measure fastrl on a GPU: environments on the device, worker processes, and PPO until solved.

    python scripts/bench_gpu.py
    python scripts/bench_gpu.py --device cpu --seconds 0.3 --num-envs 64 --only CartPole

Five tasks on the device: random actions, with policy and with training by PPO (`fastrl throughput
--train`), and random actions beside gymnax (bench_tensor_envs.py). Worker processes: one
environment, and 1 and 2 model workers on the device. PPO on CartPole-v1 until 475 is reached.
Each runs in its own process. The file says why one failed or was left out by --budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.results import Row, quantity, write
from command_line import ROOT, Parser, count, duration, output, printed, run

from fastrl.errors import ConfigError

TASKS = {
    "CartPole-v1": "cartpole",
    "Pendulum-v1": "halfcheetah_v5",
    "MountainCar-v0": "crafter",
    "MountainCarContinuous-v0": "breakout",
    "Acrobot-v1": "",
}
"""Tasks on the device, and the configuration of worker processes that is measured after each."""
KEPT = ("fps", "steps", "wall_s", "eval_return_mean", "results")


def main() -> int:
    """Measure, print and rewrite the file after each program."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--num-envs", type=count, default=2**16, help="number of environments (65,536)"
    )
    parser.add_argument("--seconds", type=duration, default=1.0, help="length of a window (1)")
    parser.add_argument("--budget", type=duration, default=600.0, help="seconds in all (600)")
    parser.add_argument("--only", default="", help="measure only names that contain this")
    parser.add_argument("--json", type=output, default=ROOT / "results" / "gpu.json")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    end, rows = time.monotonic() + args.budget, list[Row]()
    about = {"device": args.device, "num_envs": args.num_envs}
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in commands(args, scratch).items():
            if args.only in name:
                found = outcome(command, Path(scratch, "found.json"), end - time.monotonic())
                rows.append({"measured": name, **found})
                print(rows[-1], flush=True)
                write({**about, "results": rows}, args.json, peers=["gymnax", "jax"])
    return 0


def commands(args: argparse.Namespace, scratch: str) -> dict[str, list[str]]:
    """Return the command of each measurement by name, the most important first."""
    files = ["--seconds", str(args.seconds), "--repeats", "3", "--json", f"{scratch}/found.json"]
    throughput = ["-m", "fastrl", "throughput", *files]
    sampled = f"sampler.device={args.device}"
    device = ["sampler.kind=device", sampled, f"algorithm.device={args.device}"]
    n, found = args.num_envs, dict[str, list[str]]()
    sizes = [f"sampler.num_envs={n}", "sampler.rollout_length=32", "algorithm.compile=true"]
    for task, name in TASKS.items():
        overrides = [f"env.id={task}", *device, *sizes, f"algorithm.minibatch_size={8 * n}"]
        found[f"{task} on the device"] = [*throughput, "--train", *overrides]
        ways = ["gymnax", "fastrl loops" if args.device == "cpu" else "fastrl GPU"]
        drawn = ["--plot", f"{scratch}/x.png"]
        peers = ["--envs", task, "--sizes", str(n), "--methods", *ways, *drawn]
        found[f"{task}, random actions"] = ["scripts/bench_tensor_envs.py", *files, *peers]
        if name == "cartpole":
            ends = ["evaluation.every_steps=5000", "evaluation.stop_at=475", f"run_dir={scratch}/r"]
            train = ["-m", "fastrl", "train", "configs/cartpole_device_ppo.yaml", "--json"]
            found["CartPole-v1 until solved"] = [*train, *device, *ends]
        if name:
            one = ["-n", "1", "-N", "1", f"configs/{name}_throughput.yaml"]
            found[f"{name}, one environment"] = [*throughput, *one]
            for models in ("1", "2"):
                found[f"{name}, M = {models}"] = [*throughput, "-M", models, one[-1], sampled]
    return found


def outcome(command: list[str], file: Path, left_s: float) -> Row:
    """Return the results of a program, or why there are none."""
    try:
        text = printed([sys.executable, *command], timeout_s=max(0.0, left_s))
    except ConfigError as error:
        return {"left_out": str(error)}
    except subprocess.TimeoutExpired:
        return {"left_out": "no time was left"}
    found = json.loads(file.read_text(encoding="utf-8") if file.exists() else text)
    file.unlink(missing_ok=True)
    if columns := found.get("columns"):
        return {name: quantity("fps", column["fps"]) for name, column in columns.items()}
    return {key: found[key] for key in KEPT if key in found}


if __name__ == "__main__":
    run(main)
