"""What evaluation beside training costs, in training's steps per second, side by side.

    python scripts/evaluation_cost.py configs/halfcheetah_v4_ppo_cleanrl.yaml --steps 100000

In each round the same seed is trained twice, with evaluation and without it. Both runs take turns
of a tenth of a second, the other one's processes being stopped meanwhile, so that both meet the
machine in the same moods; a run's speed is its steps over the time of its own turns, between its
first row of metrics and its last.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from command_line import Parser, count, output, several

from fastrl.errors import WorkerError
from fastrl.machine import circumstances
from fastrl.training.metrics import read_rows

TARGET = 0.05
TURN_S = 0.1


def main() -> int:
    """Train, print, write the JSON; 1 if evaluation is not shown to cost at most 5 %."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=count, default=100_000, help="of each run")
    parser.add_argument("--rounds", type=several, default=8, help="pairs of runs")
    parser.add_argument("--json", type=output)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. evaluation.every_steps=20000")
    args = parser.parse_intermixed_args()

    common = [str(args.config), f"total_steps={args.steps}", "evaluation.final_episodes=1"]
    pairs = []
    for number in range(args.rounds):
        pairs.append(side_by_side([*common, f"seed={number}", *args.overrides]))
        print(f"round {number}: {1 - pairs[-1][True] / pairs[-1][False]:+.1%}", file=sys.stderr)
    costs = [1 - speeds[True] / speeds[False] for speeds in pairs]
    cost, bound = statistics.fmean(costs), _upper_bound(costs)
    print(f"evaluation costs {cost:+.1%}, with 97.5 % confidence at most {bound:+.1%}")
    if args.json:
        result: dict[str, Any] = {
            "config": args.config.as_posix(),
            "overrides": args.overrides,
            "steps": args.steps,
            "cost": cost,
            "cost_upper_bound": bound,
            "costs": costs,
            "steps_per_s_evaluated": [speeds[True] for speeds in pairs],
            "steps_per_s_alone": [speeds[False] for speeds in pairs],
            **circumstances(),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(bound > TARGET)


def side_by_side(arguments: list[str]) -> dict[bool, float]:
    """Return the steps per second of training with evaluation and without it."""
    with tempfile.TemporaryDirectory() as directory:
        runs = {
            evaluated: Run(Path(directory) / f"evaluated-{evaluated}", evaluated, arguments)
            for evaluated in (True, False)
        }
        try:
            while not all(run.done for run in runs.values()):
                for run in runs.values():
                    run.take_turn()
        finally:
            for run in runs.values():
                run.end()
        return {evaluated: run.steps_per_s() for evaluated, run in runs.items()}


class Run:
    """One training, all processes of which stand still outside of its turns."""

    def __init__(self, path: Path, evaluated: bool, arguments: list[str]) -> None:
        switch = f"evaluation.enabled={str(evaluated).lower()}"
        command = [sys.executable, "-m", "fastrl", "train", *arguments, switch, f"run_dir={path}"]
        self._metrics = path / "metrics.jsonl"
        self._own_s = 0.0
        self._size = 0
        # The time of the run's own turns at which each row of training appeared, and its steps.
        self._rows: list[tuple[float, int]] = []
        self._process = psutil.Popen(
            [*command, "logging.tensorboard=false", "logging.every_s=0.5"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._signal(signal.SIGSTOP)

    @property
    def done(self) -> bool:
        """Whether it has ended.

        Raises:
            WorkerError: It has failed.
        """
        if self._process.poll():
            raise WorkerError("training", self._process.stderr.read().decode())
        return self._process.poll() is not None

    def take_turn(self) -> None:
        """Let it run for a turn."""
        if self.done:
            return
        self._signal(signal.SIGCONT)
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < TURN_S and not self.done:
            self._look(self._own_s + spent)
            time.sleep(0.01)
        self._signal(signal.SIGSTOP)
        self._own_s += time.perf_counter() - began

    def steps_per_s(self) -> float:
        """Return its speed between its first row and its last."""
        (first_s, first), *_, (last_s, last) = self._rows
        return (last - first) / (last_s - first_s)

    def end(self) -> None:
        """Kill what is left of it."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _look(self, own_s: float) -> None:
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        if size == self._size:
            return
        self._size = size
        rows = [row for row in read_rows(self._metrics) if row["kind"] == "training"]
        if rows and (not self._rows or rows[-1]["steps"] > self._rows[-1][1]):
            self._rows.append((own_s, int(rows[-1]["steps"])))

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to every process, parents first, so that none starts unseen."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)
            for child in self._process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)


def _upper_bound(costs: list[float]) -> float:
    """Return the mean and 2.5 of its standard errors: 97.5 % of Student's t from 7 rounds on."""
    error = statistics.stdev(costs) / math.sqrt(len(costs))
    return statistics.fmean(costs) + 2.5 * error


if __name__ == "__main__":
    from one_line import run

    run(main)
