"""Measure how fast classic control can be stepped, by fastrl and by others.

    python scripts/bench_tensor_envs.py
    python scripts/bench_tensor_envs.py --envs CartPole-v1 --workloads random --sizes 2048 65536

Workloads: one environment, for single steps and for 200 in a call; a policy with one layer of 64
units, at 1 and at 2,000 environments; random actions, at 2^6 to 2^20 environments; and on CartPole
a policy of 64×64 units through env workers, against gymnasium's own vector environment driven by
the same policy in one process. Drawing actions counts; compiling does not, and is reported apart.
Those who take part take turns, in several rounds. Writes a JSON file, a Markdown file beside it,
and a plot. With --add, what the JSON file has of other environments and workloads is kept.

gymnax and EnvPool take part where they are installed: pip install gymnax envpool.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import Parser, count, duration, output
from tensor_bench import players, policy_players, report
from tensor_bench.gymnax_player import gymnax
from tensor_bench.players import Run, Setting

from fastrl.cores import usable_cores
from fastrl.envs.tensor import TENSOR_ENVS
from fastrl.machine import circumstances

_SIZES = [2**power for power in (6, 9, 11, 12, 14, 16, 18, 20)]
_POLICY_ENVS = (1024, 4096, 16384, 65536)
Builder = Callable[[Setting], Run | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the files, print the tables; return the exit code."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    found = _kept(args)
    for workload, setting in _cells(args):
        for row in _measure(setting, _builders(args, workload), args):
            found.append({"env": setting.env, "workload": workload, **row})
            print(report.line(found[-1]), file=sys.stderr, flush=True)
        text = _write(found, args)
    print(text)
    return 0


def _write(found: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Write all files; return the tables."""
    found = sorted(found, key=_place)
    result = {
        "results": found,
        "threads": args.threads,
        "seconds": args.seconds,
        "repeats": args.repeats,
        **circumstances(*report.PEERS),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = report.markdown(result)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    report.plot(result, args.plot)
    return text


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    """Return where a row belongs, whenever it was measured."""
    workload, env = list(report.WORKLOADS).index(row["workload"]), list(TENSOR_ENVS)
    return workload, env.index(row["env"]), row["num_envs"]


def _parser() -> argparse.ArgumentParser:
    described, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(
        description=described,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--envs", nargs="+", choices=TENSOR_ENVS, default=list(TENSOR_ENVS), metavar="ID")
    add("--workloads", nargs="+", choices=report.WORKLOADS, default=list(report.WORKLOADS))
    add("--methods", nargs="+", metavar="NAME", help="take part; by default all that are there")
    add("--sizes", nargs="+", type=count, default=_SIZES, metavar="N", help="of the scaling")
    add("--seconds", type=duration, default=0.5, help="length of a window (0.5)")
    add("--repeats", type=count, default=5, help="number of rounds (5)")
    add("--threads", type=count, default=usable_cores(), help="threads of every method (all cores)")
    add("--compile", action="store_true", help="torch.compile the tensor programs on the CPU too")
    add("--add", action="store_true", help="to what the JSON file has")
    add("--json", type=output, default=Path("results/tensor_envs.json"))
    add("--plot", type=output, default=Path("imgs/tensor_envs.png"))
    return parser


def _kept(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of an earlier call that this one does not measure anew."""
    if not (args.add and args.json.exists()):
        return []
    rows = json.loads(args.json.read_text(encoding="utf-8"))["results"]
    anew = {(each.env, workload, each.num_envs) for workload, each in _cells(args)}
    return [row for row in rows if (row["env"], row["workload"], row["num_envs"]) not in anew]


def _builders(args: argparse.Namespace, workload: str) -> dict[str, Builder]:
    builders: dict[str, Builder] = {
        "gymnasium": players.gymnasium_single,
        "gymnasium vector": players.gymnasium_vector,
        "EnvPool": players.envpool,
        "gymnax": gymnax,
        "gymnasium vector + torch": policy_players.vector_with_torch,
        "gymnasium vector + compiled policy": policy_players.vector_with_engine,
        "fastrl env workers": policy_players.env_workers,
        "fastrl loops": players.loops,
        "fastrl program": partial(players.program, device="cpu", steps_per_graph=0),
    }
    if workload == "policy":
        # Some hundred times as slow as the rest.
        del builders["fastrl program"]
    elif args.compile:
        builders["fastrl compiled program"] = partial(
            players.program, device="cpu", steps_per_graph=1
        )
    if torch.cuda.is_available():
        builders["fastrl GPU"] = partial(players.program, device="cuda", steps_per_graph=32)
    return {name: each for name, each in builders.items() if name in (args.methods or builders)}


def _cells(args: argparse.Namespace) -> list[tuple[str, Setting]]:
    """Return what is measured, by workload."""
    cells = []
    for env in args.envs:
        of_env = {
            "step": [Setting(env, 1, steps_per_call=1)],
            "episode": [Setting(env, 1, steps_per_call=200)],
            "policy_1": [Setting(env, 1, (64,), steps_per_call=200)],
            "policy_2000": [Setting(env, 2000, (64,), threads=args.threads)],
            "random": [Setting(env, size, threads=args.threads) for size in args.sizes],
            "policy": [],
        }
        if env == "CartPole-v1":
            of_env["policy"] = [Setting(env, size, (64, 64), args.threads) for size in _POLICY_ENVS]
        for workload in args.workloads:
            cells += [(workload, setting) for setting in of_env[workload]]
    return cells


def _measure(
    setting: Setting, builders: dict[str, Builder], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row per method that takes part."""
    runs: dict[str, Run] = {}
    first_s: dict[str, float] = {}
    for name, build in builders.items():
        began = time.perf_counter()
        run = build(setting)
        if run is not None:
            run(1)
            runs[name], first_s[name] = run, time.perf_counter() - began
    steps = {name: _calibrated(run, args.seconds, setting.length) for name, run in runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(args.repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            runs[name](steps[name])
            elapsed = time.perf_counter() - began
            rates[name].append(steps[name] * setting.num_envs / elapsed)
    for run in runs.values():
        if isinstance(run, policy_players.EnvWorkers):
            run.close()
    return [report.row(name, setting.num_envs, rates[name], first_s[name]) for name in runs]


def _calibrated(run: Run, seconds: float, unit: int) -> int:
    """Return how many steps take about so long, a multiple of ``unit``."""
    steps = unit
    while True:
        began = time.perf_counter()
        run(steps)
        elapsed = time.perf_counter() - began
        if elapsed >= seconds / 4:
            return max(unit, round(steps * seconds / elapsed / unit) * unit)
        steps *= 4


if __name__ == "__main__":
    sys.exit(main())
