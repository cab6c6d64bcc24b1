"""What evaluation beside training costs, in training's steps per second, side by side.

python scripts/evaluation_cost.py configs/halfcheetah_v4_ppo_cleanrl.yaml --steps 200000

The same seed is trained with evaluation and without it, in turn, each run in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastrl.machine import machine, versions

TARGET = 0.05


def main() -> int:
    """Train, print, write the JSON; 1 if evaluation costs more than 5 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=200_000, help="of each run")
    parser.add_argument("--rounds", type=int, default=4, help="pairs of runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. evaluation.every_steps=20000")
    args = parser.parse_intermixed_args()

    common = [str(args.config), f"total_steps={args.steps}", "evaluation.final_episodes=1"]
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(args.rounds):
        for evaluated in (True, False) if number % 2 else (False, True):
            switch = f"evaluation.enabled={str(evaluated).lower()}"
            speeds[evaluated].append(steps_per_s([*common, switch, *args.overrides]))
    pairs = zip(speeds[True], speeds[False], strict=True)
    costs = [1 - evaluated / alone for evaluated, alone in pairs]
    cost = statistics.median(costs)
    print(f"evaluation costs {cost:+.1%} ({min(costs):+.1%} to {max(costs):+.1%})")
    if args.json:
        result: dict[str, Any] = {
            "config": args.config.as_posix(),
            "overrides": args.overrides,
            "steps": args.steps,
            "cost": cost,
            "costs": costs,
            "steps_per_s_evaluated": speeds[True],
            "steps_per_s_alone": speeds[False],
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": shlex.join(["python", *sys.argv]),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(cost > TARGET)


def steps_per_s(arguments: list[str]) -> float:
    """Train once; return the steps per second that its summary tells."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command = [sys.executable, "-m", "fastrl", "train", *arguments, f"run_dir={run}"]
        subprocess.run([*command, "logging.tensorboard=false"], check=True, capture_output=True)
        return float(json.loads((run / "summary.json").read_text())["steps_per_s"])


if __name__ == "__main__":
    sys.exit(main())
