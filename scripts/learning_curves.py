"""Train a configuration with several seeds; commit the outcome, the curves and a picture.

    python scripts/learning_curves.py configs/cartpole_ppo.yaml --seeds 5
    python scripts/learning_curves.py configs/crafter_ppo.yaml --seeds 1 total_steps=1e6
    python scripts/learning_curves.py --redraw results/learning_*.json

Each seed is one `fastrl train` in a process of its own, one after the other unless --jobs says
otherwise. Writes results/learning_NAME.json and imgs/learning_NAME.png, NAME being the file's, anew
after every seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Parser, count, duration, whole

from fastrl.machine import circumstances
from fastrl.training.metrics import read_rows
from fastrl.training.plotting import curve_name, draw_curves

ROOT = Path(__file__).parents[1]
POINTS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write the files; return 1 if a seed stayed below --at-least."""
    parser = _parser()
    args = parser.parse_intermixed_args(arguments)
    for path in args.redraw:
        draw(json.loads(path.read_text(encoding="utf-8"))["runs"], path.stem)
    if args.redraw:
        return 0
    if args.config is None:
        parser.error("a configuration is missing")
    stem = f"learning_{args.name or args.config.stem}"
    result = {
        "config": str(args.config),
        "overrides": args.overrides,
        "jobs": args.jobs,
        "at_least": args.at_least,
        "runs": [],
        **circumstances(),
    }
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(train, args, seed, Path(scratch)): seed for seed in seeds}
        for done in as_completed(waiting):
            result["runs"] = sorted([*result["runs"], done.result()], key=lambda run: run["seed"])
            write(result, ROOT / "results" / f"{stem}.json")
            draw(result["runs"], stem)
            print(line(result["runs"], waiting[done]), flush=True)
    return int(any(score(run) < args.at_least for run in result["runs"]))


def train(args: argparse.Namespace, seed: int, scratch: Path) -> dict[str, Any]:
    """Train with one seed in ``scratch``; return its summary with the curve."""
    run = scratch / str(seed)
    settings = [*args.overrides, f"seed={seed}", f"run_dir={run}", "logging.tensorboard=false"]
    command = [sys.executable, "-m", "fastrl", "train", str(args.config), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (run / "summary.json").exists():
        raise SystemExit(f"seed {seed} failed: {done.stderr.strip()[-2000:]}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {**summary, **_last_row(run), "curve": curve(run)}


def curve(run: Path) -> list[tuple[int, float]]:
    """Return about 100 points (steps, mean return of the last 100 episodes of training)."""
    points = [
        (row["steps"], round(row["return_mean"], 2))
        for row in read_rows(run / "metrics.jsonl")
        if row["kind"] == "training" and row["return_mean"] is not None
    ]
    every = max(1, len(points) // POINTS)
    return points[::every] + points[-1:] if (len(points) - 1) % every else points[::every]


def score(run: dict[str, Any]) -> float:
    """Return what a seed is judged by: the final evaluation."""
    found = run["eval_return_mean"]
    return float("-inf") if found is None else float(found)


def line(runs: list[dict[str, Any]], seed: int) -> str:
    """Return how a seed did, and all of them so far."""
    run = next(run for run in runs if run["seed"] == seed)
    scores = [score(each) for each in runs]
    achieved = ""
    if "achievement_score" in run:
        achieved = f"; achievement score {run['achievement_score']:.2f} %"
    return (
        f"seed {seed}: evaluation {score(run):.1f}, training {run['train_return_mean']:.1f} after "
        f"{run['steps']:,} steps in {run['wall_s']:.0f} s; mean of {len(runs)}: "
        f"{statistics.fmean(scores):.1f}{achieved}"
    )


def write(result: dict[str, Any], target: Path) -> None:
    """Write the JSON."""
    runs = result["runs"]
    scores = [score(run) for run in runs]
    means = {
        "eval_return_mean": statistics.fmean(scores),
        "eval_return_std_over_seeds": statistics.pstdev(scores),
        "train_return_mean": statistics.fmean(run["train_return_mean"] for run in runs),
        "steps_per_s_mean": statistics.fmean(run["steps_per_s"] for run in runs),
    }
    achieved = [run["achievement_score"] for run in runs if "achievement_score" in run]
    if achieved:
        means["achievement_score_mean"] = statistics.fmean(achieved)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**means, **result}, indent=1) + "\n", encoding="utf-8")


def draw(runs: list[dict[str, Any]], stem: str) -> None:
    """Draw the curves of all seeds."""
    curves = [np.array(run["curve"], np.float64).T for run in runs]
    name = curve_name(runs[0]["env"], runs[0]["algorithm"])
    picture = ROOT / "imgs" / f"{stem}.png"
    draw_curves({name: [(steps, returns) for steps, returns in curves]}, picture)


def _last_row(run: Path) -> dict[str, float]:
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "training"]
    return {"train_return_mean": rows[-1]["return_mean"], "episodes": rows[-1]["episodes"]}


def _parser() -> argparse.ArgumentParser:
    described, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(
        description=described, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", type=Path, nargs="?")
    add("overrides", nargs="*", help="key=value")
    add("--seeds", type=count, default=3, help="number of seeds (3)")
    add("--first-seed", type=whole, default=0)
    add("--jobs", type=count, default=1, help="runs at a time (1)")
    add("--name", help="of the files, without learning_; that of the configuration by default")
    add(
        "--redraw", nargs="+", type=Path, default=(), metavar="FILE",
        help="train nothing: draw what these JSON files hold",
    )  # fmt: skip
    add(
        "--at-least",
        type=duration,
        default=float("-inf"),
        help="evaluation that each seed must reach",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
