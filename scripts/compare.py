"""Compare how fast fastrl and other libraries sample one environment with one policy.

    python scripts/compare.py --env CartPole-v1
    python scripts/compare.py configs/crafter_ppo.yaml --limit --best 8,2,0,1
    python scripts/compare.py --redraw results/compare_*.json

Each method first gets a quick scan of its settings, then all of them, at their best settings, are
measured in turn, in several rounds and in a new order each. The result is a JSON file, a Markdown
table beside it and a plot. Peers that are not installed are left out: pip install -e '.[compare]'.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import Found, write
from command_line import MEASURED_MODEL, Parser, count, duration, output, run, whole
from comparison.picture import draw
from comparison.report import PEER_PACKAGES, markdown
from comparison.rounds import LABELS, Options, compare, say
from comparison.task import Task

from fastrl.cli import split_arguments
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.spec import Topology

_EXIT_TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, write the files and print the table; return the exit code."""
    args = _parser().parse_args(arguments)
    if args.list:
        for name, label in LABELS.items():
            print(f"{name:18} {label}")
        return 0
    for path in args.redraw:
        _draw(json.loads(path.read_text(encoding="utf-8")), args.plot)
    if args.redraw:
        return 0
    _write(compare(_task(args), _options(args)), args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("arguments", nargs="*", metavar="CONFIG KEY=VALUE", help="a YAML file and keys to change")
    add("--env", metavar="ID", help="id of the environment")
    add("--methods", nargs="+", choices=LABELS, default=LABELS, metavar="NAME", help="see --list")
    add("--list", action="store_true", help="list the methods and exit")
    add("--num-envs", nargs="+", type=count, default=(), help="sizes to try for every peer")
    best = parser.add_mutually_exclusive_group()
    best.add_argument(
        "--best", type=_topology, metavar="n,N,M,groups", help="fastrl's topology (scanned)"
    )
    best.add_argument(
        "--grid", nargs="+", type=_topology, default=(), metavar="n,N,M,groups",
        help="search fastrl's best among these; by default among a few for this machine",
    )  # fmt: skip
    add("--seconds", type=duration, default=3.0, help="length of a window (3)")
    add("--repeats", type=count, default=5, help="number of rounds (5)")
    add("--scan-seconds", type=duration, default=1.0, help="length of a window of the scan (1)")
    add("--seed", type=whole, help="seed of environments, policy and order")
    add("--limit", action="store_true", help="measure the physical limit in every round")
    add("--json", type=output, metavar="FILE", help="results/compare_<env>.json")
    add("--plot", type=output, metavar="FILE", help="imgs/compare_<env>.png")
    add("--no-plot", action="store_true", help="write no plot")
    add(
        "--redraw", nargs="+", type=Path, default=(), metavar="FILE",
        help="measure nothing: draw these JSON files",
    )  # fmt: skip
    return parser


def _task(args: argparse.Namespace) -> Task:
    path, overrides = split_arguments(args.arguments)
    if args.env is not None:
        overrides.append(f"env.id={args.env}")
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    # Nothing is learnt, so no worker needs to wait for another; the user's keys override these.
    usual = ["sampler.mode=async"] if path else ["sampler.mode=async", MEASURED_MODEL]
    config = load_config(path, [*usual, *overrides])
    if config.sampler.kind != "process":
        raise ConfigError("sampler.kind: a comparison needs 'process', got 'serial'")
    return Task.from_config(config)


def _options(args: argparse.Namespace) -> Options:
    return Options(
        methods=tuple(dict.fromkeys(args.methods)),
        sizes=tuple(args.num_envs),
        grid=[args.best] if args.best else args.grid,
        seconds=args.seconds,
        repeats=args.repeats,
        scan_s=args.scan_seconds,
        with_limit=args.limit,
    )


def _write(found: Found, args: argparse.Namespace) -> None:
    path = args.json or Path("results") / f"{_stem(found['env'])}.json"
    found = write(found, path, markdown, PEER_PACKAGES)
    print(markdown(found))
    say(f"wrote {path} and {path.with_suffix('.md')}")
    if not args.no_plot:
        _draw(found, args.plot)


def _draw(found: Mapping[str, Any], target: Path | None) -> None:
    image = target or Path("imgs") / f"{_stem(found['env'])}.png"
    draw(found, image)
    say(f"wrote {image}")


def _stem(env: str) -> str:
    """Return the name of an environment's files, without suffix."""
    return "compare_" + re.sub(r"[^\w.-]+", "_", env)


def _topology(text: str) -> Topology:
    try:
        envs, workers, models, groups = (int(part) for part in text.split(","))
        return Topology(envs, workers, models, groups)
    except (ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not n,N,M,groups: {error}") from None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_TERMINATED))
    run(main)
