"""What the benchmarks of compiled environments share: options, and a report made of parts.

Every row names its part, the heading above its table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from command_line import Parser, count, duration, output

from bench.results import distinct, load, quantity, replaced, select, write
from bench.rounds import CLOCKS, Steps, interleaved, rate
from bench.tables import origin, rates_table
from fastrl.system import circumstances

_PEERS = ("envpool", "mjbatch")

Others = Callable[[dict[str, list[float]]], dict[str, str]]
"""Returns against what rates are held: the heading of a column of ratios and the contestant."""


def native_parser(
    described: str | None, sizes: list[int], seconds: float
) -> argparse.ArgumentParser:
    """Return a parser with the options that these benchmarks share."""
    parser = Parser(described)
    parser.add_argument("-n", "--num-envs", nargs="+", type=count, default=sizes)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=duration, default=seconds, help="per measurement")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=output, help="add the part to this file, and its .md")
    parser.add_argument("--redraw", type=Path, help="measure nothing: write the .md of this JSON")
    return parser


def measured(
    contestants: Mapping[str, Steps], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the steps per second of each contestant in each round."""

    def turn(steps: Steps) -> float:
        steps()
        return rate(steps, options.seconds, CLOCKS[options.clock])

    turns = {name: partial(turn, steps) for name, steps in contestants.items()}
    return interleaved(turns, options.rounds)


def report(
    part: str,
    rates: Mapping[str, list[float]],
    others: Others,
    options: argparse.Namespace,
    **of_part: Any,
) -> None:
    """Print the table of a part, and add it with its other figures to the file ``options.json``."""
    here = {**of_part, **circumstances(*_PEERS)}
    rows = [
        {"part": part, "method": name, **quantity("steps_per_s", each), **here}
        for name, each in rates.items()
    ]
    print(markdown({"results": rows}, others), flush=True)
    if options.json:
        found = load(options.json)
        found["results"] = replaced(found["results"], rows, ["part"])
        write(found, options.json, lambda whole: markdown(whole, others), _PEERS)


def redraw(others: Others, path: Path) -> None:
    """Write the Markdown of a JSON file."""
    path.with_suffix(".md").write_text(markdown(load(path), others), encoding="utf-8")


def markdown(found: Mapping[str, Any], others: Others) -> str:
    """Return all parts."""
    parts = []
    for part in distinct(found["results"], "part"):
        rows = select(found["results"], part=part)
        rates = {row["method"]: row["steps_per_s"] for row in rows}
        parts += [f"## {part}\n", rates_table(rates, others(rates))]
        if "reset_ms" in rows[0]:
            took = f"A reset takes {rows[0]['reset_ms']:.2f} ms; "
            parts.append(f"{took}the start of a process {rows[0]['start_s']:.2f} s.\n")
        parts.append(f"{origin(rows[0])}\n")
    return "\n".join(parts)
