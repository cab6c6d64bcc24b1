"""Sample for minutes and show that nothing grows: memory, descriptors and threads per process.

python scripts/soak.py --env CartPole-v1 --minutes 10 --json results/soak_cartpole.json
"""

import argparse
import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fastrl import load_config, make_sampler
from fastrl.machine import machine, versions

SAMPLE_S = 5.0


def main() -> int:
    """Run, print one line per process, write the JSON; 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. sampler.envs_per_worker=64")
    args = parser.parse_args()

    config = load_config(None, [f"env.id={args.env}", "sampler.mode=async", *args.overrides])
    with make_sampler(config) as sampler:
        end = time.monotonic() + args.warm_up
        while time.monotonic() < end:
            sampler.collect()
        processes = {name: psutil.Process(pid) for name, pid in sampler.pids().items()}
        processes["main"] = psutil.Process()
        series: dict[str, list[dict[str, int]]] = {name: [] for name in processes}
        start, due, steps = time.monotonic(), time.monotonic(), sampler.counters.env_steps()
        while time.monotonic() - start < args.minutes * 60:
            sampler.collect()
            if time.monotonic() >= due:
                due += SAMPLE_S
                for name, process in processes.items():
                    series[name].append(look(process))
        elapsed = time.monotonic() - start
        steps = sampler.counters.env_steps() - steps

    rows = {name: summary(values) for name, values in series.items()}
    grew = [
        name
        for name, row in rows.items()
        if row["rss_growth"] > args.tolerance or row["fds_growth"] or row["threads_growth"]
    ]
    for name, row in rows.items():
        print(
            f"{name:16} rss {row['rss_first_mib']:7.1f} → {row['rss_last_mib']:7.1f} MiB "
            f"({row['rss_growth']:+.2%}), descriptors {row['fds_growth']:+d}, "
            f"threads {row['threads_growth']:+d}"
        )
    print(f"{steps:,} frames in {elapsed:.0f} s; " + (f"grew: {grew}" if grew else "nothing grew"))
    if args.json:
        result = {
            "env": args.env,
            "minutes": elapsed / 60,
            "frames": steps,
            "tolerance": args.tolerance,
            "processes": rows,
            "grew": grew,
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": shlex.join(["python", *sys.argv]),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if grew else 0


def look(process: psutil.Process) -> dict[str, int]:
    """Return what a process holds now."""
    with process.oneshot():
        return {
            "rss": process.memory_info().rss,
            "fds": process.num_fds(),
            "threads": process.num_threads(),
        }


def summary(values: list[dict[str, int]]) -> dict[str, float | int]:
    """Compare the first tenth of the run with the last tenth."""
    tenth = max(1, len(values) // 10)
    first, last = values[:tenth], values[-tenth:]
    rss = [sum(v["rss"] for v in part) / len(part) / 2**20 for part in (first, last)]
    return {
        "rss_first_mib": rss[0],
        "rss_last_mib": rss[1],
        "rss_growth": rss[1] / rss[0] - 1,
        "fds_growth": last[-1]["fds"] - first[0]["fds"],
        "threads_growth": last[-1]["threads"] - first[0]["threads"],
    }


if __name__ == "__main__":
    sys.exit(main())
