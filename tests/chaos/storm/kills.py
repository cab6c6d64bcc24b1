"""Kill training runs, or one of their ranks, at random moments, and resume them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fastrl.config import load_config, save_config
from fastrl.training.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[3]
_START_S = 120.0
_END_S = 60.0
"""Twice the deadline of a rank's heartbeat."""


@dataclass
class Kills:
    """Results of the kills.

    Attributes:
        killed: Runs that were killed.
        resumed: Runs that continued from the last checkpoint of the previous one.
        lost_steps: Environment steps that each kill cost: trained, and not in a checkpoint.
        interval_steps: Steps between checkpoints, and one rollout.
        left_processes: Processes of a killed run that outlived it.
        left_files: New names in /dev/shm after it.
        ends_s: From each kill to the end of the last rank.
        seconds: How long all of it took.
    """

    killed: int = 0
    resumed: int = 0
    lost_steps: list[int] = field(default_factory=list)
    interval_steps: int = 0
    left_processes: int = 0
    left_files: int = 0
    ends_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


def kill_again_and_again(
    directory: Path, times: int, max_s: float, seed: int = 0, ranks: int = 1
) -> Kills:
    """Train CartPole with all kinds of processes; kill it, resume it, and count what remains.

    Of several ranks one is killed. The others must save and end, each with exit code 1.
    """
    pick, found = random.Random(seed), Kills()
    run, began_s = directory / "run", time.monotonic()
    config = load_config(
        None,
        [
            "env.id=CartPole-v1",
            f"run_dir={run}",
            "total_steps=1e9",
            "sampler.envs_per_worker=8",
            "sampler.num_env_workers=2",
            "sampler.num_model_workers=1",
            "sampler.rollout_length=16",
            "algorithm.minibatch_size=256",
            "algorithm.epochs=1",
            "checkpoint.every_steps=4096",
            "checkpoint.keep_last=2",
            "logging.every_steps=256",
            "logging.tensorboard=false",
            "evaluation.every_steps=20000",
        ],
    )
    save_config(config, directory / "config.yaml")
    # The other ranks save what is learnt.
    found.interval_steps = 256 + (4096 if ranks == 1 else 0)
    reached = 0
    while found.killed < times and time.monotonic() - began_s < max_s:
        before = _saved_steps(run)
        arguments = ["resume", str(run)] if before is not None else ["train", "config.yaml"]
        port = _free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "fastrl", *arguments],
                cwd=directory if before is None else ROOT,
                env=os.environ | _place(rank, ranks, port),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        # Rows of the run before are there until this one has started: only beyond them is it sure.
        if not _trains_beyond(run, reached, processes[0]):
            for process in processes:
                process.kill()
            raise RuntimeError(f"'{run}' did not go on from {before} steps")
        found.resumed += before is not None
        time.sleep(pick.uniform(0.0, 1.0))
        family = [
            each.pid
            for process in processes
            for top in [psutil.Process(process.pid)]
            for each in (top, *top.children(True))
        ]
        files, killed_s = _shared_names(), time.monotonic()
        victim = processes.pop(pick.randrange(ranks))
        victim.kill()
        victim.wait()
        codes = [process.wait(_END_S) for process in processes]
        if set(codes) - {1}:
            raise RuntimeError(f"the other ranks ended with the exit codes {codes}")
        found.ends_s.append(time.monotonic() - killed_s)
        found.killed += 1
        found.left_processes += _left(family)
        found.left_files += len(_shared_names() - files)
        reached = _trained_steps(run)
        found.lost_steps.append(reached - (_saved_steps(run) or 0))
    found.seconds = time.monotonic() - began_s
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the variables by which torchrun tells a process which rank it is."""
    place = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def _trains_beyond(run: Path, steps: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        if _trained_steps(run) > steps:
            return True
        time.sleep(0.02)
    return False


def _saved_steps(run: Path) -> int | None:
    store = CheckpointStore(run / "checkpoints")
    return store.load("last").steps if store.names() else None


def _trained_steps(run: Path) -> int:
    """Return the steps of the last row of metrics."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines()[-3:]
    except OSError:
        return 0
    steps = [
        int(line.split(b'"steps": ')[1].split(b",")[0]) for line in lines if b'"steps": ' in line
    ]
    return max(steps, default=0)


def _left(family: list[int]) -> int:
    """Return how many processes are left after at most five seconds."""
    until, left = time.monotonic() + 5.0, list(family)
    while left and time.monotonic() < until:
        left = [pid for pid in left if _is_alive(pid)]
        time.sleep(0.02)
    return len(left)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _shared_names() -> set[str]:
    # Semaphores of multiprocessing are those of other programs: fastrl's have no name.
    names = {entry.name for entry in Path("/dev/shm").glob("*")}
    return {name for name in names if not name.startswith("sem.mp-")}
