"""Compare the tuner with Optuna's TPE and with random search, at equal wall time.

    python scripts/bench_tuner.py
    python scripts/bench_tuner.py --machines 100 --budgets 30 60 --json results/tuner_regret.json

Nothing is measured: machines are drawn from a model of what sampling costs, or read from recorded
grids (``results/tune_grid_*.json``), with noise, drift and failures, and time passes on paper. The
regret of a choice is the share of the best candidate's true speed that it loses.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command_line import Parser, count, duration, output
from tuner_bench import surfaces
from tuner_bench.rivals import RIVALS
from tuner_bench.surfaces import Surface

from fastrl.machine import circumstances
from fastrl.tuning import Candidate

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a table, write JSON where asked; return the exit code."""
    args = _parser().parse_args(arguments)
    drawn = [surfaces.machine(seed) for seed in range(args.machines)]
    made = [surfaces.plateau(), surfaces.cliff(), surfaces.two_hills()]
    groups = {"synthetic machines": drawn, "made to mislead": made, **_recorded()}
    rows = []
    for (group, members), budget_s in (
        (item, budget) for item in groups.items() for budget in args.budgets
    ):
        row = {"surfaces": group, "count": len(members), "budget_s": budget_s}
        for name in args.tuners:
            row[name] = _summary(name, members, budget_s, args.repeats)
        rows.append(row)
        print(_line(row, args.tuners), flush=True)
    if args.json:
        found = {"rows": rows, "repeats": args.repeats, **circumstances("optuna")}
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _summary(
    name: str, members: Sequence[Surface], budget_s: float, repeats: int
) -> dict[str, float]:
    started = time.perf_counter()
    regrets = [
        surface.regret(RIVALS[name](surface, budget_s, seed))
        for surface in members
        for seed in range(repeats)
    ]
    median, p90, worst = np.quantile(regrets, [0.5, 0.9, 1.0])
    within = float(np.mean(np.array(regrets) <= 0.05))
    return {
        "median_regret": float(median),
        "p90_regret": float(p90),
        "worst_regret": float(worst),
        "within_5_percent": within,
        "thinking_s": (time.perf_counter() - started) / len(regrets),
    }


def _line(row: dict, tuners: Sequence[str]) -> str:
    text = f"{row['surfaces']} ({row['count']}), {row['budget_s']:g} s:"
    for name in tuners:
        found = row[name]
        text += (
            f"  {name} median {found['median_regret']:.1%} p90 {found['p90_regret']:.1%} "
            f"≤5% {found['within_5_percent']:.0%} ({found['thinking_s']:.2f} s)"
        )
    return text


def _recorded() -> dict[str, list[Surface]]:
    found = {}
    for path in sorted((ROOT / "results").glob("tune_grid_*.json")):
        grid = json.loads(path.read_text())
        speeds = {Candidate.from_dict(row): row["fps"] for row in grid["rows"]}
        default = Candidate.from_dict(grid["default"])
        name = f"recorded {grid['env']}"
        found[name] = [surfaces.from_table(name, grid["cores"], speeds, default)]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=count, default=40, help="synthetic machines")
    parser.add_argument("--repeats", type=count, default=3, help="runs on each surface")
    parser.add_argument("--budgets", type=duration, nargs="+", default=[30, 60, 120])
    parser.add_argument("--tuners", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--json", type=output)
    return parser


if __name__ == "__main__":
    sys.exit(main())
