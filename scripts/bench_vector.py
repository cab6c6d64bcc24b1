"""Measure the time to reset and to step 1 … 256 environments in fastrl and other libraries.

    python scripts/bench_vector.py --env CartPole-v1 --rounds 3
    python scripts/bench_vector.py --env ALE/Breakout-v5 --sizes 16,128 --rounds 2 --add
    python scripts/bench_vector.py --auto --new --rounds 5
    python scripts/bench_vector.py --redraw

``--auto`` compares the backend that `auto` chooses with all others, in 12 cases.

New measurements replace the same rows of the JSON file; ``--add`` adds rounds to them;
all other rows stay. ``--new`` begins an empty file, which another machine needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product

from bench import plots
from bench.results import Found, Row, distinct, load, quantity, replaced, select, when, write
from bench.rounds import interleaved
from bench.tables import origin, pivot
from bench.vector_envs import METHODS, make_one, measure
from command_line import ROOT, Parser, count, duration, output, run

from fastrl.errors import FastrlError, one_line

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
AUTO = {
    "env": ["CartPole-v1", "HalfCheetah-v5", "ALE/Breakout-v5"],
    "sizes": [2, 16, 64, 128],
    "methods": [method for method in METHODS if method.startswith("fastrl")],
    "json": ROOT / "results/bench_auto.json",
    "plot": ROOT / "imgs/bench_auto.png",
}


def main() -> None:
    """Measure, print each result, and write the JSON file, tables and plot."""
    options = arguments()
    if options.redraw:
        draw(load(options.json), options)
        return
    found = {"results": []} if options.new else load(options.json, ("cpu", "cores"))
    for env in options.env:
        make_one(env).close()  # a wrong id is reported before anything is measured
    kept = found["results"] if options.add else []
    rows = {}
    for case in product(options.env, options.methods, options.sizes):
        row = dict(zip(("env", "method", "num_envs"), case, strict=True))
        empty = dict.fromkeys(("start_s", "reset_s", "step_s"), ())
        rows[case] = row | empty | dict(*select(kept, **row))

    def save(index: int) -> None:
        new = [row | when() for row in rows.values() if row["step_s"]]
        found["results"] = replaced(found["results"], new, ("env", "method", "num_envs"))
        write(found, options.json)

    turns = {key: partial(measured, row, options.seconds) for key, row in rows.items()}
    interleaved(turns, options.rounds, after_round=save)
    draw(load(options.json), options)


def measured(row: Row, seconds: float) -> None:
    """Add a measurement to a row and print it; or print why the method cannot."""
    where = f"{row['env']} {row['num_envs']:4d} {row['method']:18}"
    try:
        times = measure(row["env"], row["method"], row["num_envs"], seconds)
    except FastrlError as error:
        print(f"{where} left out: {one_line(error, None)}", flush=True)
        return
    row["backends"] = [*row.get("backends", []), times.pop("backend")]
    for name, value in times.items():
        row |= quantity(name, [*row[name], value])
    step_ms, reset_ms = 1e3 * times["step_s"], 1e3 * times["reset_s"]
    print(f"{where} step {step_ms:9.3f} ms, reset {reset_ms:9.2f} ms", flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--env", type=str.split, default=["CartPole-v1"], help="ids of environments"
    )
    parser.add_argument("--sizes", type=sizes, default=SIZES, help="such as 1,16,128")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*METHODS])
    parser.add_argument("--seconds", type=duration, default=0.5, help="seconds per measurement")
    parser.add_argument("--rounds", type=count, default=1)
    parser.add_argument("--auto", action="store_true", help="auto against the other backends")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--add", action="store_true", help="add rounds to existing rows")
    kept.add_argument("--new", action="store_true", help="start an empty JSON file")
    kept.add_argument("--redraw", action="store_true", help="measure nothing: tables and plot")
    parser.add_argument("--json", type=output, default=ROOT / "results/bench_vector.json")
    parser.add_argument("--plot", type=output, default=ROOT / "imgs/bench_vector.png")
    if parser.parse_known_args()[0].auto:
        parser.set_defaults(**AUTO)
    options = parser.parse_args()
    for method in options.methods:
        if method not in METHODS:
            parser.error(f"no method '{method}'; there are {', '.join(METHODS)}")
    return options


def sizes(text: str) -> list[int]:
    """Parse numbers of environments, separated by commas."""
    return [count(part) for part in text.split(",")]


def draw(found: Found, options: argparse.Namespace) -> None:
    """Write the tables and the plot of a file."""
    options.json.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    rows = found["results"]
    panels = [
        [
            plots.Panel(
                f"{env}: {what}",
                "environments",
                "milliseconds for all environments",
                _lines(ordered(select(rows, env=env)), f"{name}_median"),
            )
            for env in distinct(rows, "env")
        ]
        for name, what in (("step_s", "step"), ("reset_s", "reset"))
    ]
    plots.curves(panels, options.plot, plots.where(found))


def _lines(rows: Sequence[Row], key: str) -> dict[str, plots.Line]:
    """Return the time over the number of environments by method, and a line of linear growth."""
    lines = {
        method: (
            [row["num_envs"] for row in select(rows, method=method)],
            [1e3 * row[key] for row in select(rows, method=method)],
        )
        for method in distinct(rows, "method")
    }
    for one in select(rows, method="sequential", num_envs=1):
        numbers = distinct(rows, "num_envs")
        lines["ideal: linear growth"] = (numbers, [1e3 * one[key] * each for each in numbers])
    return lines


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Return the rows sorted by size and method, without those of MPI."""
    methods = [*METHODS, "MPI"]
    return sorted(rows, key=lambda row: (row["num_envs"], methods.index(row["method"])))


def markdown(found: Found) -> str:
    """Return tables of the times of a step and of a reset, and of the choices of `auto`."""
    parts = [
        "# Vector environments: time of a step of all environments\n",
        "Random actions, medians over rounds in which the methods take turns; milliseconds, the "
        f"spread over rounds in brackets where there are several. Measured last: {origin(found)}\n",
    ]
    for env in distinct(found["results"], "env"):
        rows = ordered(select(found["results"], env=env))
        parts += [f"## {env}\n", pivot(rows, "method", "num_envs", partial(_cell, "step_s"))]
        parts += ["Reset of all environments, milliseconds:\n"]
        parts += [pivot(rows, "method", "num_envs", partial(_cell, "reset_s"))]
        parts += [_auto(rows)]
    parts += [f"## {note['name']}\n\n{note['text']}\n" for note in found.get("notes", ())]
    return "\n".join(parts)


def _cell(key: str, row: Row) -> str:
    low, high = (1e3 * row[f"{key}_{end}"] for end in ("min", "max"))
    spread = f" [{low:.2f} … {high:.2f}]" if len(row[key]) > 1 else ""
    return f"{1e3 * row[f'{key}_median']:.2f}{spread}"


def _auto(rows: Sequence[Row]) -> str:
    """Return a table of the choices of `auto`, and their speed relative to the best backend."""
    lines = []
    for row in select(rows, method="fastrl auto"):
        found = [
            each for each in select(rows, num_envs=row["num_envs"]) if "fastrl" in each["method"]
        ]
        if not row["env"].startswith("ALE/"):  # other batches have other random streams
            found = [each for each in found if each["method"] != "fastrl native"]
        best_s = min(each["step_s_median"] for each in found)
        chosen = " ".join(dict.fromkeys(row.get("backends", ())))
        lines.append(f"- {row['num_envs']}: {best_s / row['step_s_median']:.2f} {chosen}")
    return "\n".join(["`auto` against the best backend that does the same:\n", *lines, ""])


if __name__ == "__main__":
    run(main)
