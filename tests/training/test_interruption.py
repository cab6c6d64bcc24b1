"""Training processes that are stopped from outside, by signals they can and cannot answer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fastrl.config import EvaluationConfig, SamplerConfig, save_config
from fastrl.errors import ConfigError
from fastrl.training import resume
from fastrl.training.checkpoint import CheckpointStore
from tests.training.clockwork import small_run

# Three processes that train are started in turn, and each may take a minute.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
ENDLESS = 10**9


@pytest.fixture
def start(tmp_path):
    """Start a command of fastrl in a process group of its own."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "fastrl", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def endless(tmp_path):
    """A configuration that trains for ever, with all processes, saving at every update."""
    path = tmp_path / "run"
    config = small_run(
        path,
        total_steps=ENDLESS,
        sampler=SamplerConfig(envs_per_worker=4, num_env_workers=2, rollout_length=8),
        evaluation=EvaluationConfig(every_steps=1000, episodes=2),
    )
    checkpoint = config.checkpoint.model_copy(update={"keep_last": 2})
    file = tmp_path / "config.yaml"
    save_config(config.model_copy(update={"checkpoint": checkpoint}), file)
    return path, file


def wait_for_steps(path, steps, process):
    deadline = time.monotonic() + 60
    store = CheckpointStore(path / "checkpoints")
    while int((store.names() or ["step_0"])[-1].removeprefix("step_")) <= steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_steps(path):
    return CheckpointStore(path / "checkpoints").load("last").steps


@pytest.mark.parametrize(
    ("number", "code", "whole_group"),
    [
        pytest.param(signal.SIGINT, 130, True, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, False, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, True, id="SIGTERM to all", marks=pytest.mark.slow),
    ],
)
def test_signal_saves_and_ends(start, endless, number, code, whole_group):
    path, file = endless
    # Saved by time, and that is long: what is saved now is saved for the signal.
    process = start("train", file, "checkpoint.every_steps=null", "checkpoint.every_s=1e6")
    deadline = time.monotonic() + 60
    while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"to continue: fastrl resume {path}" in err
    assert "Traceback" not in err
    assert f"{last_steps(path):,} steps in" in out
    assert last_steps(path) > 0
    psutil.wait_procs(children, timeout=60)
    assert not [child for child in children if child.is_running()]


def kill_and_resume(start, endless, times, seed):
    path, file = endless
    pick = random.Random(seed)
    process, steps = start("train", file), 0
    for _ in range(times):
        wait_for_steps(path, steps, process)
        time.sleep(pick.uniform(0, 0.3))
        process.kill()
        process.communicate()
        store = CheckpointStore(path / "checkpoints")
        for name in store.names():
            store.load(name)
        reached = last_steps(path)
        assert reached > steps
        steps = reached
        process = start("resume", path)
    wait_for_steps(path, steps, process)
    with pytest.raises(ConfigError, match=f"is being trained in by process {process.pid};"):
        resume(path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err


def test_run_that_is_killed_goes_on(start, endless):
    kill_and_resume(start, endless, times=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_that_is_killed_twenty_times_goes_on(start, endless):
    kill_and_resume(start, endless, times=20, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_run_that_is_killed_while_it_starts_goes_on(start, endless):
    path, file = endless
    pick = random.Random(2)

    def begin():
        return start(*(("resume", path) if (path / "config.yaml").exists() else ("train", file)))

    for _ in range(10):
        process = begin()
        time.sleep(pick.uniform(0.5, 6))
        process.kill()
        process.communicate()
    names = CheckpointStore(path / "checkpoints").names()
    reached = int(names[-1].removeprefix("step_")) if names else 0
    wait_for_steps(path, reached, begin())
