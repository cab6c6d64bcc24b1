"""Random input to every command and constructor: accepted, or rejected in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.chaos.storm.chance import config_keys
from tests.chaos.storm.fuzz_commands import command_line, commands, files, overrides
from tests.chaos.storm.fuzz_constructors import constructors
from tests.chaos.storm.fuzz_damage import damages

SHARES = {overrides: 0.31, files: 0.22, constructors: 0.36, commands: 0.06, damages: 0.05}
REPORTED = 10
HANGS_S = 60.0
"""Deadline in seconds; a short training takes less on a busy machine, too."""
_MEMORY_BYTES = 8 << 30
_RUN = (
    "train env.id=CartPole-v1 run_dir=run total_steps=32 sampler.kind=serial "
    "sampler.num_env_workers=1 sampler.envs_per_worker=2 sampler.rollout_length=8 "
    "evaluation.every_steps=16 evaluation.episodes=1 evaluation.final_episodes=1 "
    "logging.tensorboard=false logging.every_steps=16 checkpoint.every_steps=16"
)


def fuzz_configurations(number: int, max_s: float, seed: int) -> dict[str, Any]:
    """Try ``number`` inputs; count the outcomes by kind."""
    pick, keys, began_s = random.Random(seed), config_keys(), time.monotonic()
    outcomes: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in SHARES}
    wrong: list[str] = []
    slowest_s = 0.0
    with _workplace() as directory:
        for _ in range(number):
            if time.monotonic() - began_s > max_s:
                break
            (kind,) = pick.choices([*SHARES], [*SHARES.values()])
            description, attempt = kind(pick, keys, directory)
            before_s = time.monotonic()
            try:
                with _deadline():
                    accepted = attempt()
            except BaseException:
                wrong.append(f"{description}: {traceback.format_exc()}")
                outcomes[kind.__name__]["wrong"] += 1
            else:
                outcomes[kind.__name__]["accepted" if accepted else "refused"] += 1
            slowest_s = max(slowest_s, time.monotonic() - before_s)
    tried = sum(outcome.total() for outcome in outcomes.values())
    return {
        "seconds": time.monotonic() - began_s,
        "tried": tried,
        **outcomes,
        "wrong": wrong[:REPORTED],
        "slowest_s": slowest_s,
        "as_promised": not wrong and tried == number,
    }


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """Work in a new directory with a small run, and limit the memory."""
    before, limits = Path.cwd(), resource.getrlimit(resource.RLIMIT_AS)
    silenced = logging.root.manager.disable
    root = str(Path(__file__).parents[3])
    importable = {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with (
        tempfile.TemporaryDirectory() as directory,
        warnings.catch_warnings(),
        patch.dict(os.environ, importable),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, limits[1]))
        try:
            assert command_line(_RUN.split())
            yield Path(directory)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            os.chdir(before)
            logging.disable(silenced)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for more than {HANGS_S:g} s")

    before: Callable[..., Any] | Any = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, HANGS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
