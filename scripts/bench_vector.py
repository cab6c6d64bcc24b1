"""Measure how long resets and steps of 1 … 256 environments take, in fastrl and in its peers.

    python scripts/bench_vector.py --env CartPole-v1 --rounds 3
    python scripts/bench_vector.py --env ALE/Breakout-v5 --sizes 16,128 --add

Every round goes through all methods, so that a drift of the machine's speed meets all of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vector_bench.measure import measure
from vector_bench.methods import METHODS
from vector_bench.report import find, markdown, plot
from vector_bench.scenes import scenes

from fastrl.machine import machine, versions

ROOT = Path(__file__).parents[1]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGEST = {"MPI": 16}
"""Ranks that wait for each other occupy a core each: more than these take minutes."""


def main() -> None:
    """Measure, print every figure as it comes, and write JSON, tables and the plot."""
    options = arguments()
    found = load(options.json) if options.add else new()
    if options.scenes:
        found["scenes"] = scenes(200, options.seconds)
        print(*(each["text"] for each in found["scenes"]), sep="\n")
        write(found, options.json, options.plot)
        return
    rows: list[dict[str, Any]] = found["rows"]
    for number in range(options.rounds):
        for size in options.sizes:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
            for method in options.methods:
                if size > LARGEST.get(method, size):
                    continue
                timing = measure(options.env, method, size, options.seconds)
                row = find(rows, options.env, method, size)
                if row is None:
                    row = {"env": options.env, "method": method, "num_envs": size, "rounds": []}
                    rows.append(row)
                row["rounds"].append(asdict(timing))
                print(
                    f"round {number} {options.env} {size:4d} {method:18} step "
                    f"{1e3 * timing.step_s:9.3f} ms, reset {1e3 * timing.reset_s:9.2f} ms",
                    flush=True,
                )
    write(found, options.json, options.plot)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="add to what the JSON file has")
    parser.add_argument("--scenes", action="store_true", help="measure envs that wait, instead")
    parser.add_argument("--json", type=Path, default=ROOT / "results/bench_vector.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "imgs/bench_vector.png")
    options = parser.parse_args()
    options.sizes = options.sizes or SIZES
    options.methods = options.methods or [*METHODS]
    for method in options.methods:
        if method not in (*METHODS, "MPI"):
            parser.error(f"no method '{method}'; there are {', '.join([*METHODS, 'MPI'])}")
    return options


def new() -> dict[str, Any]:
    """Return an empty set of results, with what they depend on."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"machine": machine(), "versions": versions(), "date": today, "rows": [], "scenes": []}


def load(path: Path) -> dict[str, Any]:
    """Return the results of a file, or an empty set of them."""
    return json.loads(path.read_text()) if path.exists() else new()  # type: ignore[no-any-return]


def write(found: dict[str, Any], path: Path, picture: Path) -> None:
    """Write JSON, the tables beside it, and the plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(found))
    if found["rows"]:
        plot(found, picture)


if __name__ == "__main__":
    main()
