"""Train a configuration with several seeds; write the results and a plot of their curves.

    python scripts/learning_curves.py configs/cartpole_ppo.yaml --seeds 5
    python scripts/learning_curves.py configs/crafter_ppo.yaml --seeds 1 total_steps=1e6
    python scripts/learning_curves.py --redraw results/learning_*.json

The seeds are a sweep (`fastrl sweep`) whose runs are not kept, one after the other unless --jobs
says otherwise. Writes results/learning_NAME.json and imgs/learning_NAME.png, NAME being the file's,
anew after every seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.results import write
from command_line import ROOT, Parser, count, run, whole

from fastrl.config import load_config
from fastrl.datasets import load_demonstrations, named_dataset
from fastrl.errors import ConfigError
from fastrl.sweeps import Sweep, SweepPlan, TrialResult
from fastrl.training.metrics import read_rows
from fastrl.training.plotting import curve_name, draw_curves

POINTS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write the files; return 1 if a seed stayed below --at-least."""
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
    }
    demonstrations = shown(args.config, args.overrides)
    if demonstrations is not None:
        result["demonstrations"] = demonstrations
    seeds = range(args.first_seed, args.first_seed + args.seeds)

    def keep(trial: TrialResult) -> None:
        if trial.state != "finished":
            raise ConfigError(str(trial))
        result["runs"] = sorted([*result["runs"], summary(trial)], key=lambda run: run["seed"])
        write(means(result["runs"]) | result, ROOT / "results" / f"{stem}.json")
        draw(result["runs"], stem)
        print(line(result["runs"], trial.values["seed"]), flush=True)

    plan = SweepPlan(
        args.config.resolve(), [*args.overrides, "logging.tensorboard=false"], {"seed": list(seeds)}
    )
    with tempfile.TemporaryDirectory() as scratch:
        Sweep(plan, Path(scratch), args.jobs).run(keep)
    return int(any(score(run) < args.at_least for run in result["runs"]))


def summary(trial: TrialResult) -> dict[str, Any]:
    """Return the summary of a run with its curve."""
    found = json.loads((trial.path / "summary.json").read_text(encoding="utf-8"))
    rows = read_rows(trial.path / "metrics.jsonl")
    training, evaluations = (
        [row for row in rows if row["kind"] == kind] for kind in ("training", "evaluation")
    )
    last = {"train_return_mean": training[-1]["return_mean"], "episodes": training[-1]["episodes"]}
    # Cloning plays no episodes, except to evaluate, and at the end for certain.
    end = {"steps": found["steps"], "return_mean": found["eval_return_mean"]}
    return {**found, **last, "curve": curve(training) or curve([*evaluations, end])}


def shown(config: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the number and the returns of the demonstrations; None where there are none."""
    found = load_config(config, overrides)
    if found.dataset is None:
        return None
    path, episodes, key = named_dataset(found)
    demonstrations = load_demonstrations(path, episodes=episodes, key=key)
    returns = demonstrations.returns
    about = {"return_mean": float(returns.mean()), "return_std": float(returns.std(correction=0))}
    return {"episodes": len(returns), "steps": len(demonstrations), **about}


def curve(rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return about 100 points (steps, mean return): of the last 100 episodes, or evaluated."""
    points = [
        (row["steps"], round(row["return_mean"], 2))
        for row in rows
        if row["return_mean"] is not None
    ]
    every = max(1, len(points) // POINTS)
    return points[::every] + points[-1:] if (len(points) - 1) % every else points[::every]


def score(run: dict[str, Any]) -> float:
    """Return the score of a seed: its final evaluation."""
    found = run["eval_return_mean"]
    return float("-inf") if found is None else float(found)


def line(runs: list[dict[str, Any]], seed: int) -> str:
    """Format the result of a seed and the mean so far."""
    run = next(run for run in runs if run["seed"] == seed)
    scores = [score(each) for each in runs]
    achieved, last = "", run["train_return_mean"]
    trained = "–" if last is None else f"{last:.1f}"
    if "achievement_score" in run:
        achieved = f"; achievement score {run['achievement_score']:.2f} %"
    return (
        f"seed {seed}: evaluation {score(run):.1f}, training {trained} after "
        f"{run['steps']:,} steps in {run['wall_s']:.0f} s; mean of {len(runs)}: "
        f"{statistics.fmean(scores):.1f}{achieved}"
    )


def means(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean results of the seeds."""
    scores = [score(run) for run in runs]
    found = {
        "eval_return_mean": statistics.fmean(scores),
        "eval_return_std_over_seeds": statistics.pstdev(scores),
        "steps_per_s_mean": statistics.fmean(run["steps_per_s"] for run in runs),
    }
    for key in ("train_return_mean", "achievement_score"):
        numbers = [run[key] for run in runs if run.get(key) is not None]
        if numbers:
            found[f"{key.removesuffix('_mean')}_mean"] = statistics.fmean(numbers)
    return found


def draw(runs: list[dict[str, Any]], stem: str) -> None:
    """Draw the curves of all seeds."""
    curves = [np.array(run["curve"], np.float64).T for run in runs]
    name = curve_name(runs[0]["env"], runs[0]["algorithm"])
    picture = ROOT / "imgs" / f"{stem}.png"
    if all(len(steps) < 2 for steps, _ in curves):
        picture.unlink(missing_ok=True)  # a curve of one evaluation shows nothing
        return
    draw_curves({name: [(steps, returns) for steps, returns in curves]}, picture)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("config", type=Path, nargs="?")
    add("overrides", nargs="*", help="key=value")
    add("--seeds", type=count, default=3, help="number of seeds (3)")
    add("--first-seed", type=whole, default=0)
    add("--jobs", type=count, default=1, help="runs at a time (1)")
    add("--name", help="name of the files after learning_ (that of the configuration)")
    add(
        "--redraw", nargs="+", type=Path, default=(), metavar="FILE",
        help="train nothing: draw these JSON files",
    )  # fmt: skip
    add("--at-least", type=float, default=float("-inf"), help="evaluation each seed must reach")
    return parser


if __name__ == "__main__":
    run(main)
