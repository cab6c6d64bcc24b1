"""Measure how long resets and steps of 1 … 256 environments take, in fastrl and in its peers.

    python scripts/bench_vector.py --env CartPole-v1 --rounds 3
    python scripts/bench_vector.py --env ALE/Breakout-v5 --sizes 16,128 --methods MPI --add

Every round goes through all methods, so that a drift of the machine's speed meets all of them.
What is measured replaces the same rows of the JSON file, or adds rounds to them with ``--add``;
all other rows stay. ``--new`` begins an empty file, which another machine needs.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command_line import Parser, count, duration, output
from vector_bench.measure import measure
from vector_bench.methods import METHODS, MPI
from vector_bench.one_env import make_one
from vector_bench.report import find, markdown, plot
from vector_bench.scenes import scenes
from vector_bench.turns import table, turns

from fastrl.errors import ConfigError, FastrlError
from fastrl.machine import machine, versions

ROOT = Path(__file__).parents[1]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main() -> None:
    """Measure, print every figure as it comes, and write JSON, tables and the plot."""
    options = arguments()
    found = new() if options.new else load(options.json)
    if options.scenes:
        found["scenes"] = scenes(200, options.seconds)
        print(*(each["text"] for each in found["scenes"]), sep="\n")
        write(found, options.json, options.plot)
        return
    make_one(options.env).close()  # an id that is wrong is told before anything is measured
    if options.turns:
        others = [row for row in found.get("turns", []) if row["env"] != options.env]
        mine = turns(options.env, options.sizes, options.seconds)
        found["turns"] = [*others, *mine]
        print(table(mine))
        write(found, options.json, options.plot)
        return
    replaced: set[tuple[str, int]] = set()
    for number in range(options.rounds):
        for size in options.sizes:
            for method in options.methods:
                row = measured(found["rows"], method, size, number, options)
                if row is None:
                    continue
                if not options.add and (method, size) not in replaced:
                    row["rounds"] = row["rounds"][-1:]
                replaced.add((method, size))
            save(found, options.json)
    write(found, options.json, options.plot)


def measured(
    rows: list[dict[str, Any]], method: str, size: int, number: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Add a measurement to its row, and print it; None where the method cannot do it."""
    where = f"round {number} {options.env} {size:4d} {method:18}"
    try:
        timing = measure(options.env, method, size, options.seconds)
    except FastrlError as error:
        print(f"{where} left out: {' '.join(str(error).split())}", flush=True)
        return None
    row = find(rows, options.env, method, size)
    if row is None:
        row = {"env": options.env, "method": method, "num_envs": size, "rounds": []}
        rows.append(row)
    row["date"] = today()
    row["rounds"].append(asdict(timing))
    times = f"step {1e3 * timing.step_s:9.3f} ms, reset {1e3 * timing.reset_s:9.2f} ms"
    print(f"{where} {times}", flush=True)
    return row


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--sizes", type=sizes, default=SIZES, help="such as 1,16,128")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*METHODS])
    parser.add_argument("--seconds", type=duration, default=0.5, help="per measurement")
    parser.add_argument("--rounds", type=count, default=1)
    parser.add_argument("--scenes", action="store_true", help="measure envs that wait, instead")
    parser.add_argument("--turns", action="store_true", help="a few envs against linear growth")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--add", action="store_true", help="add rounds to the rows that there are")
    kept.add_argument("--new", action="store_true", help="drop all that the JSON file has")
    parser.add_argument("--json", type=output, default=ROOT / "results/bench_vector.json")
    parser.add_argument("--plot", type=output, default=ROOT / "imgs/bench_vector.png")
    options = parser.parse_args()
    for method in options.methods:
        if method not in (*METHODS, MPI):
            parser.error(f"no method '{method}'; there are {', '.join([*METHODS, MPI])}")
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds and --seconds must be above 0")
    return options


def sizes(text: str) -> list[int]:
    """Return numbers of environments, separated by commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def today() -> str:
    """Return the date."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def new() -> dict[str, Any]:
    """Return an empty set of results, with what they depend on."""
    depends = {"machine": machine(), "versions": versions(), "date": today()}
    return {**depends, "rows": [], "scenes": []}


def load(path: Path) -> dict[str, Any]:
    """Return the results of a file, or an empty set of them.

    Raises:
        ConfigError: They were made on another machine.
    """
    if not path.exists():
        return new()
    found: dict[str, Any] = json.loads(path.read_text())
    for key in ("cpu", "cores"):
        mine, theirs = machine()[key], found["machine"][key]
        if mine != theirs:
            raise ConfigError(
                f"{path} was measured on another machine ({key} {theirs}, here {mine}): drop it "
                "with --new, or write to another --json"
            )
    return found | {"versions": versions(), "date": today()}


def save(found: dict[str, Any], path: Path) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def write(found: dict[str, Any], path: Path, picture: Path) -> None:
    """Write JSON, the tables beside it, and the plot."""
    save(found, path)
    path.with_suffix(".md").write_text(markdown(found))
    if found["rows"]:
        plot(found, picture)


if __name__ == "__main__":
    from one_line import run

    run(main)
