"""What may happen around a run: signals, terminals that go, disks that are full."""

from __future__ import annotations

import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from fastrl import cli, durable
from fastrl.config import save_config
from fastrl.durable import WriteError
from fastrl.errors import ConfigError
from fastrl.learning import build_learner
from fastrl.sampling import make_plan, make_sampler
from fastrl.training import Callback, interrupts, resume, train
from fastrl.training.checkpoint import CheckpointError, CheckpointStore
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.run_directory import RunDirectory
from fastrl.training.trainer import Trainer
from tests.training.clockwork import small_run
from tests.training.test_interruption import ENDLESS, ROOT, last_steps, wait_for_steps


def test_second_signal_ends_at_once():
    with Interrupts() as found:
        signal.raise_signal(signal.SIGINT)
        assert found.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_hangup_changes_nothing_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGHUP)
    with Interrupts() as found, found.breakable():
        signal.raise_signal(signal.SIGHUP)
        assert found.requested is None
    assert signal.getsignal(signal.SIGHUP) == before


class Slow:
    """A learner whose updates take for ever from some point on, and are half done by then."""

    def __init__(self, learner, updates):
        self._learner, self._left = learner, updates

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def update(self, rollout):
        metrics = self._learner.update(rollout)
        self._left -= 1
        if not self._left:
            signal.raise_signal(signal.SIGTERM)
            deadline = time.monotonic() + 100
            while time.monotonic() < deadline:
                time.sleep(0.01)
        return metrics


def test_update_that_lasts_is_broken_off_after_sigterm_and_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "HURRY_S", 0.3)
    monkeypatch.setattr("fastrl.training.trainer._SLOW_S", 0.0)
    config = small_run(tmp_path / "run")
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    states = []
    with Interrupts() as found, make_sampler(config, plan, learner.weights()) as sampler:
        trainer = Trainer(sampler, Slow(learner, 3), 10**6, found)

        def keep_state(update):
            states.append(learner.state_dict())

        with pytest.raises(StopSignal):
            trainer.run(keep_state)
    assert found.requested == signal.SIGTERM
    assert learner.updates == len(states) == 2
    for name, tensor in learner.state_dict()["model"].items():
        assert torch.equal(tensor, states[-1]["model"][name])


@pytest.fixture
def on_a_terminal(tmp_path):
    """Return a run on a terminal of its own, and the other end of that."""
    path = tmp_path / "run"
    config = small_run(path, total_steps=ENDLESS)
    checkpoint = config.checkpoint.model_copy(update={"keep_last": 2})
    logging = config.logging.model_copy(update={"every_s": 0.1})
    save_config(
        config.model_copy(update={"checkpoint": checkpoint, "logging": logging}),
        tmp_path / "config.yaml",
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrl", "train", str(tmp_path / "config.yaml")],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    yield process, ours, path
    if process.poll() is None:
        process.kill()
    process.wait()


def test_training_goes_on_when_its_terminal_is_closed(on_a_terminal):
    process, ours, path = on_a_terminal
    os.set_blocking(ours, False)
    wait_for_steps(path, 64, process)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)
    wait_for_steps(path, last_steps(path) + 640, process)
    process.send_signal(signal.SIGTERM)
    # Who asked for it is gone, so that nothing can be said is no failure of the run.
    assert process.wait(timeout=60) in (143, 1)
    assert last_steps(path) > 64


@pytest.mark.slow
def test_start_goes_on_when_its_terminal_is_closed(on_a_terminal):
    process, _, path = on_a_terminal
    while not psutil.Process(process.pid).children():  # the first look at the environment
        assert process.poll() is None
        time.sleep(0.001)
    assert not path.exists()
    os.killpg(process.pid, signal.SIGHUP)
    wait_for_steps(path, 64, process)


def full_disk_after(monkeypatch, writes):
    """Let so many files be brought to the disk before it is full."""
    left, fsync = [writes], os.fsync

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", full)
    return left


def test_full_disk_is_one_line_and_earlier_checkpoints_are_whole(tmp_path, monkeypatch):
    path = tmp_path / "run"
    full_disk_after(monkeypatch, 20)
    with pytest.raises(CheckpointError, match=r"step_0+\d+' cannot be written: No space left on"):
        train(small_run(path))
    monkeypatch.undo()
    store = CheckpointStore(path / "checkpoints")
    assert store.names()
    for name in store.names():
        store.load(name)
    assert not list((path / "checkpoints").glob(".*"))
    assert resume(path).outcome.steps == 512


@pytest.mark.parametrize("writes", [0, 2, 5])
def test_disk_that_is_full_from_the_start_is_one_line(tmp_path, monkeypatch, writes):
    full_disk_after(monkeypatch, writes)
    with pytest.raises((WriteError, CheckpointError), match=r"^[^\n]*No space left on device$"):
        train(small_run(tmp_path / "run"))


def test_metrics_that_cannot_be_written_end_the_run_and_what_was_learnt_is_saved(
    tmp_path, monkeypatch
):
    from fastrl.training.metrics import JsonLines

    def full(self, kind, row):
        if row["steps"] > 192:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLines, "write", full)
    path = tmp_path / "run"
    with pytest.raises(WriteError, match=r"metrics.jsonl' cannot be written: No space left on"):
        train(small_run(path))
    assert last_steps(path) == 256


@pytest.mark.parametrize("run_dir", ["/proc/run", "/dev/null/run", "/dev/full"])
def test_directory_that_cannot_be_written_is_one_line(tmp_path, capsys, run_dir):
    save_config(small_run(run_dir), tmp_path / "config.yaml")
    assert cli.main(["train", str(tmp_path / "config.yaml")]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith(f"fastrl: error: '{run_dir}' cannot be ")


def test_second_trainer_on_a_directory_is_refused(tmp_path):
    path = tmp_path / "run"
    config = small_run(path)
    first = RunDirectory.create(path, config)
    for start in (lambda: train(config), lambda: resume(path)):
        with pytest.raises(ConfigError, match=f"is being trained in by process {os.getpid()};"):
            start()
    first.close()
    assert resume(path).outcome.steps == 512


def test_reader_of_the_output_that_goes_away_is_no_traceback():
    script = f"{sys.executable} -m fastrl envs | head -n 1"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


class Removing(Callback):
    """Removes the directory of the run."""

    def on_update(self, context, update):
        shutil.rmtree(context.directory.parent)


def test_a_run_that_is_removed_ends_and_is_not_made_again(tmp_path):
    with pytest.raises(WriteError, match="run' was removed or moved while it was trained in"):
        train(small_run(tmp_path / "run"), callbacks=[Removing()])
    assert list(tmp_path.iterdir()) == []
