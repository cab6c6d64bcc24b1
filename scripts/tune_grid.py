"""Measure an exhaustive grid of candidates, and how close the tuner comes to its best.

    python scripts/tune_grid.py grid --env CartPole-v1 --pause-after 80
    python scripts/tune_grid.py runs --env CartPole-v1 --runs 5

``grid`` may be stopped and goes on from its file, ``results/tune_grid_ENV.json``. Every few
candidates the default is measured as well, and all frames per second are brought to the same speed
of the machine by it. ``runs`` tunes with a tenth of the grid's time, and then measures the choice
and the grid's best in turn. n goes in powers of two, N to twice the cores, M from 0 to N, groups
are 1 and 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from command_line import MEASURED_MODEL, Parser, count, duration

from fastrl.config import Config, load_config
from fastrl.cores import usable_cores
from fastrl.machine import circumstances
from fastrl.tuning import Candidate
from fastrl.tuning.apply import candidate_of
from fastrl.tuning.tune import TuneOptions, Tuning
from fastrl.tuning.workbench import Workbench

ROOT = Path(__file__).parents[1]
WINDOW_S = 1.5
BETWEEN_DEFAULTS = 8
TURN_S, PAIRS = 0.2, 20
"""The choice and the grid's best take short turns: cores change their speed within a second."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the file, print a summary; return the exit code."""
    args = _parser().parse_args(arguments)
    config = load_config(None, [f"env.id={args.env}", MEASURED_MODEL, *args.overrides])
    name = args.env.replace("/", "-").replace(":", "-")
    path = ROOT / "results" / f"tune_grid_{name}.json"
    if args.what == "grid":
        return _grid(config, path, args)
    return _runs(config, path, args)


def _grid(config: Config, path: Path, args: argparse.Namespace) -> int:
    found = json.loads(path.read_text()) if path.exists() else _new(config, args)
    done = {Candidate.from_dict(row) for row in found["rows"]}
    default = Candidate.from_dict(found["default"])
    left = [c for c in _candidates(args.max_envs) if c not in done]
    until_s = time.monotonic() + args.pause_after
    with Workbench(config, limit_s=10.0) as bench:
        bench.calibrate(default)
        for index, candidate in enumerate(left):
            if time.monotonic() > until_s:
                break
            if index % BETWEEN_DEFAULTS == 0:
                reference_fps = bench(default, WINDOW_S).fps
            found["rows"].append(_measured(bench, candidate, reference_fps))
    _scale(found)
    _write(path, found)
    best = max(found["rows"], key=lambda row: row["fps"])
    left = len(_candidates(args.max_envs)) - len(found["rows"])
    total_s = sum(row["cost_s"] for row in found["rows"])
    print(f"{len(found['rows'])} measured in {total_s:.0f} s, {left} left; best {best}")
    return 0 if left == 0 else 3


def _measured(bench: Workbench, candidate: Candidate, reference_fps: float) -> dict[str, Any]:
    began_s, error, fps = time.perf_counter(), "", 0.0
    try:
        fps = bench(candidate, WINDOW_S).fps
    except Exception as problem:
        error = " ".join(str(problem).split())[:120]
    cost_s = time.perf_counter() - began_s
    return {
        **candidate.to_dict(),
        "raw_fps": fps,
        "default_fps": reference_fps,
        "cost_s": cost_s,
        "error": error,
    }


def _scale(found: dict[str, Any]) -> None:
    """Bring all rows to the speed at which the default has its median."""
    # Rows that were measured one after the other share a window of the default.
    windows = list(dict.fromkeys(row["default_fps"] for row in found["rows"]))
    median = statistics.median(windows)
    around = {
        fps: statistics.median(windows[max(0, i - 1) : i + 2]) for i, fps in enumerate(windows)
    }
    for row in found["rows"]:
        row["fps"] = row["raw_fps"] * median / around[row["default_fps"]]


def _runs(config: Config, path: Path, args: argparse.Namespace) -> int:
    found = json.loads(path.read_text())
    grid_s = sum(row["cost_s"] for row in found["rows"])
    ranked = sorted(found["rows"], key=lambda row: -row["fps"])
    # The best of many noisy rows is partly luck, so the first few are measured again.
    top = [Candidate.from_dict(row) for row in ranked[:3]]
    budget_s = args.share * grid_s
    runs = found.setdefault("runs", [])
    for _ in range(args.runs):
        seed = len(runs)
        options = TuneOptions(budget_s=budget_s, with_limit=False, seed=seed)
        began_s = time.monotonic()
        with Tuning(config, options) as tuning:
            finding = tuning.run().finding
        spent_s = time.monotonic() - began_s
        reached = _against_top(config, finding.best, top)
        runs.append(
            {
                "seed": seed,
                "best": finding.best.to_dict(),
                "share_of_grid_best": reached,
                "budget_s": budget_s,
                "spent_s": spent_s,
                "grid_s": grid_s,
                "trials": len(finding.trials),
                "ended": finding.ended,
            }
        )
        print(f"run {seed}: {finding.best.label}: {reached:.1%} of {top[0].label}; {spent_s:.0f} s")
        _write(path, found)
    return 0


def _write(path: Path, found: dict[str, Any]) -> None:
    """Write the file, with where, when and by which command it was last added to."""
    found.update(circumstances())
    path.write_text(json.dumps(found, indent=1) + "\n")


def _against_top(config: Config, choice: Candidate, top: Sequence[Candidate]) -> float:
    """Return the speed of a choice as a share of the fastest of the grid, turn by turn."""
    with Workbench(config) as bench:
        bench.calibrate(choice)
        # The fastest is picked by turns of its own: the least of several noisy shares is too low.
        best = min(top, key=lambda one: _share(bench, choice, one, PAIRS))
        return _share(bench, choice, best, 2 * PAIRS)


def _share(bench: Workbench, choice: Candidate, other: Candidate, pairs: int) -> float:
    """Return the speed of a choice as a share of another's; 1 where they are the same."""
    if choice == other:
        return 1.0
    shares = []
    for _ in range(pairs):
        others = bench(other, TURN_S / 2).fps
        own = bench(choice, TURN_S).fps
        shares.append(2 * own / (others + bench(other, TURN_S / 2).fps))
    return statistics.fmean(shares)


def _candidates(max_envs: int) -> list[Candidate]:
    return list(dict.fromkeys(_all(max_envs)))


def _all(max_envs: int) -> Iterator[Candidate]:
    for exponent in range(max_envs.bit_length()):
        n = 2**exponent
        for workers in range(1, 2 * usable_cores() + 1):
            for models in range(workers + 1):
                for groups in (1, 2):
                    if n % groups == 0:
                        yield Candidate(n, workers, models, groups)


def _new(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "env": args.env,
        "cores": usable_cores(),
        "default": candidate_of(config).to_dict(),
        "window_s": WINDOW_S,
        "rows": [],
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["grid", "runs"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--env", required=True)
    parser.add_argument("--max-envs", type=count, default=1024, help="largest n")
    parser.add_argument("--pause-after", type=duration, default=1e9, metavar="SECONDS")
    parser.add_argument("--runs", type=count, default=5)
    parser.add_argument(
        "--share", type=duration, default=0.1, help="of the grid's time, for a tuning"
    )
    return parser


if __name__ == "__main__":
    from one_line import run

    run(main)
