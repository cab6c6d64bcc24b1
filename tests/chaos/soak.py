"""Run for minutes and show that nothing grows: memory, descriptors and threads per process.

python -m tests.chaos.soak --env CartPole-v1 --minutes 10 --json results/soak_cartpole.json
python -m tests.chaos.soak --train configs/cartpole_ppo.yaml --minutes 60 --warm-up 180
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fastrl import load_config, make_sampler
from fastrl.system import circumstances
from scripts.command_line import MEASURED_MODEL, Parser, delay, duration, output, run

SAMPLE_S = 5.0
END_S = 60.0
PARTS = 10


@dataclass
class Soak:
    """Memory, descriptors and threads of each process over time.

    Attributes:
        processes: Watched processes by name.
        series: Measurements of each process.
        frames: Environment steps in this time.
        seconds: Duration in seconds.
    """

    processes: dict[str, psutil.Process]
    series: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0

    def look(self) -> None:
        """Measure every process."""
        for name, process in self.processes.items():
            with process.oneshot():
                held = {
                    "rss": process.memory_info().rss,
                    "fds": process.num_fds(),
                    "threads": process.num_threads(),
                }
            self.series.setdefault(name, []).append(held)


def main() -> int:
    """Run, print one line per process and write the JSON file; return 1 if anything grew."""
    parser = Parser(__doc__, prog="soak")
    parser.add_argument("--env", default="CartPole-v1", help="to sample from")
    parser.add_argument("--train", type=Path, metavar="CONFIG", help="train instead of sampling")
    parser.add_argument("--minutes", type=duration, default=10.0)
    parser.add_argument("--warm-up", type=delay, default=30.0, help="seconds before the first look")
    parser.add_argument("--tolerance", type=delay, default=0.02)
    parser.add_argument("--json", type=output)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. sampler.envs_per_worker=64")
    args = parser.parse_args()

    soak = sample(args) if args.train is None else train(args)
    rows = {name: summary(values) for name, values in soak.series.items()}
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
    verdict = f"grew: {grew}" if grew else "nothing grew"
    print(f"{soak.frames:,} frames in {soak.seconds:.0f} s; {verdict}")
    if args.json:
        result = {
            "env" if args.train is None else "config": args.env
            if args.train is None
            else args.train,
            "minutes": soak.seconds / 60,
            "warm_up_s": args.warm_up,
            "frames": soak.frames,
            "tolerance": args.tolerance,
            "processes": rows,
            "grew": grew,
            **circumstances(),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2, default=str) + "\n")
    return 1 if grew else 0


def sample(args: argparse.Namespace) -> Soak:
    """Sample in this process and its workers."""
    config = load_config(
        None, [f"env.id={args.env}", "sampler.mode=async", MEASURED_MODEL, *args.overrides]
    )
    with make_sampler(config) as sampler:
        end = time.monotonic() + args.warm_up
        while time.monotonic() < end:
            sampler.collect()
        soak = Soak({name: psutil.Process(pid) for name, pid in sampler.pids().items()})
        soak.processes["main"] = psutil.Process()
        start, due, before = time.monotonic(), time.monotonic(), sampler.stats().frames
        while time.monotonic() - start < args.minutes * 60:
            sampler.collect()
            if time.monotonic() >= due:
                due += SAMPLE_S
                soak.look()
        soak.seconds = time.monotonic() - start
        soak.frames = sampler.stats().frames - before
    return soak


def train(args: argparse.Namespace) -> Soak:
    """Watch ``fastrl train`` and all of its processes from outside."""
    load_config(args.train, args.overrides)  # reports errors before anything starts
    with tempfile.TemporaryDirectory() as directory, training(args, Path(directory)) as trainer:
        run = Path(directory) / "run"
        time.sleep(args.warm_up)
        family = {each.pid: each for each in trainer.children(recursive=True)}
        soak = Soak({"trainer": trainer})
        soak.processes |= {f"{each.name()} {pid}": each for pid, each in sorted(family.items())}
        start, before = time.monotonic(), trained_steps(run)
        while time.monotonic() - start < args.minutes * 60:
            soak.look()
            time.sleep(SAMPLE_S)
        soak.seconds, soak.frames = time.monotonic() - start, trained_steps(run) - before
    return soak


@contextmanager
def training(args: argparse.Namespace, directory: Path) -> Iterator[psutil.Process]:
    """Train without a limit, and stop as Ctrl-C does."""
    overrides = [f"run_dir={directory / 'run'}", "total_steps=1e12", *args.overrides]
    with (directory / "output").open("w") as output:
        command = [sys.executable, "-m", "fastrl", "train", str(args.train), *overrides]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield psutil.Process(process.pid)
    except (psutil.NoSuchProcess, OSError) as error:
        raise SystemExit(f"{error}: {(directory / 'output').read_text()[-1000:]}") from error
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def trained_steps(run: Path) -> int:
    """Return the steps of the last row of metrics."""
    last = (run / "metrics.jsonl").read_bytes().splitlines()[-1]
    return int(json.loads(last)["steps"])


def summary(values: list[dict[str, int]]) -> dict[str, Any]:
    """Compare the first tenth of the run with the last tenth.

    Descriptors are medians, as some are open for a moment only.
    """
    size = max(1, len(values) // PARTS)
    parts = [values[index : index + size] for index in range(0, len(values), size)]
    rss = [statistics.fmean(look["rss"] for look in part) / 2**20 for part in parts]
    fds, threads = (
        [statistics.median_low(look[kind] for look in part) for part in (parts[0], parts[-1])]
        for kind in ("fds", "threads")
    )
    return {
        "rss_first_mib": rss[0],
        "rss_last_mib": rss[-1],
        "rss_growth": rss[-1] / rss[0] - 1,
        "rss_of_each_tenth_mib": [round(value, 2) for value in rss],
        "fds": fds[-1],
        "fds_growth": fds[-1] - fds[0],
        "threads": threads[-1],
        "threads_growth": threads[-1] - threads[0],
    }


if __name__ == "__main__":
    run(main)
