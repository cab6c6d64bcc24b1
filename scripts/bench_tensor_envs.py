"""Measure how fast fastrl and other libraries step classic control.

    python scripts/bench_tensor_envs.py
    python scripts/bench_tensor_envs.py --envs CartPole-v1 --sizes 2048 65536
    python scripts/bench_tensor_envs.py --redraw

Random actions, at 2^6 to 2^20 environments. The time to draw actions counts; the time to compile is
reported apart. Methods take turns in several rounds. Writes a JSON file, a Markdown
file beside it, and a plot. --add keeps the JSON file's other rows.

gymnax and EnvPool take part where they are installed: pip install gymnax envpool.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from bench import classic_control as ways
from bench import plots
from bench.classic_control import Setting, Way
from bench.results import Found, Row, distinct, load, quantity, replaced, select, write
from bench.rounds import Steps, interleaved, rate
from bench.tables import origin, pivot, table
from command_line import Parser, count, duration, output, run

from fastrl.envs.tensor import TENSOR_ENVS
from fastrl.system import usable_cores

PEERS = ("gymnax", "jax", "envpool")
_SIZES = [2**power for power in (6, 9, 11, 12, 14, 16, 18, 20)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the files and print the tables; return the exit code."""
    args = _parser().parse_args(arguments)
    if args.redraw:
        _draw(load(args.json), args)
        return 0
    torch.set_num_threads(args.threads)
    found = load(args.json) if args.add else {"results": []}
    for env, num_envs in product(args.envs, args.sizes):
        about = {"env": env, "num_envs": num_envs}
        new = [{**about, **row} for row in _measure(Setting(env, num_envs, args.threads), args)]
        for row in new:
            print(_line(row), file=sys.stderr, flush=True)
        rows = replaced(found["results"], new, ("env", "num_envs"))
        found["results"] = sorted(
            rows, key=lambda row: (list(TENSOR_ENVS).index(row["env"]), row["num_envs"])
        )
        found |= {"threads": args.threads, "seconds": args.seconds, "repeats": args.repeats}
        found = write(found, args.json, peers=PEERS)
        _draw(found, args)
    print(args.json.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    full = [name for name in TENSOR_ENVS if "NoVel" not in name]  # those that the peers have
    add("--envs", nargs="+", choices=TENSOR_ENVS, default=full, metavar="ID")
    add("--methods", nargs="+", metavar="NAME", help="methods to measure (all that are installed)")
    add(
        "--sizes",
        nargs="+",
        type=count,
        default=_SIZES,
        metavar="N",
        help="numbers of environments",
    )
    add("--seconds", type=duration, default=0.5, help="length of a window (0.5)")
    add("--repeats", type=count, default=5, help="number of rounds (5)")
    add("--threads", type=count, default=usable_cores(), help="threads of every method (all cores)")
    add("--compile", action="store_true", help="torch.compile the tensor programs on the CPU too")
    add("--add", action="store_true", help="keep the JSON file's other rows")
    add("--redraw", action="store_true", help="measure nothing: tables and plot of the JSON file")
    add("--json", type=output, default=Path("results/tensor_envs.json"))
    add("--plot", type=output, default=Path("imgs/tensor_envs.png"))
    return parser


def _ways(args: argparse.Namespace) -> dict[str, Way]:
    found: dict[str, Way] = {
        "gymnasium vector": ways.gymnasium_vector,
        "EnvPool": ways.envpool,
        "gymnax": ways.gymnax,
        "fastrl loops": ways.loops,
        "fastrl program": partial(ways.program, device="cpu", steps_per_graph=0),
    }
    if args.compile:
        found["fastrl compiled program"] = partial(ways.program, device="cpu", steps_per_graph=1)
    if torch.cuda.is_available():
        found["fastrl GPU"] = partial(ways.program, device="cuda", steps_per_graph=32)
    return {name: each for name, each in found.items() if name in (args.methods or found)}


def _measure(setting: Setting, args: argparse.Namespace) -> list[Row]:
    """Return one row per method that supports the setting."""
    running: dict[str, Steps] = {}
    first_s: dict[str, float] = {}
    for name, way in _ways(args).items():
        began = time.perf_counter()
        steps = way(setting)
        if steps is not None:
            steps()
            running[name], first_s[name] = steps, time.perf_counter() - began
    turns = {name: partial(rate, steps, args.seconds) for name, steps in running.items()}
    rates = interleaved(turns, args.repeats)
    return [
        {"method": name, **quantity("steps_per_s", rates[name]), "first_step_s": first_s[name]}
        for name in running
    ]


def _line(row: Row) -> str:
    """Format a result as a line of progress."""
    return (
        f"{row['env']:26}{row['num_envs']:>9,} "
        f"{row['method']:24}{row['steps_per_s_median'] / 1e6:>12.3f} M steps/s"
    )


def _draw(found: Found, args: argparse.Namespace) -> None:
    """Write the tables and the plot of a file."""
    args.json.with_suffix(".md").write_text(_markdown(found), encoding="utf-8")
    rows = found["results"]
    panels = [
        plots.Panel(env, "environments", "steps per second", _lines(select(rows, env=env)))
        for env in distinct(rows, "env")
    ]
    if panels:
        title = f"Random actions, {found['threads']} threads; {plots.where(found)}"
        plots.curves([panels], args.plot, title)


def _lines(rows: Sequence[Row]) -> dict[str, plots.Line]:
    return {
        method: tuple(
            [row[key] for row in select(rows, method=method)]
            for key in ("num_envs", "steps_per_s_median")
        )
        for method in distinct(rows, "method")
    }


def _markdown(found: Found) -> str:
    """Return all tables."""
    rows = found["results"]
    parts = [
        f"{found['threads']} threads; medians of rounds taken in turns; in the rows that were "
        f"measured last, of {found['repeats']} of at least {found['seconds']} s: {origin(found)}\n"
    ]
    for env in distinct(rows, "env"):
        parts.append(f"**{env}: million steps per second, random actions**\n")
        parts.append(pivot(select(rows, env=env), "num_envs", "method", _millions))
    # Measured by earlier versions of this script.
    parts += [f"**{note['name']}**\n\n{note['text']}\n" for note in found.get("notes", ())]
    longest = [
        [method, f"{max(row['first_step_s'] for row in select(rows, method=method)):.2f}"]
        for method in distinct(rows, "method")
    ]
    parts.append("**Longest time to the first step: building, compiling and stepping**\n")
    return "\n".join([*parts, table(["method", "s"], longest)])


def _millions(row: Row) -> str:
    return f"{row['steps_per_s_median'] / 1e6:.3g}"


if __name__ == "__main__":
    run(main)
