from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastrl.config import LoggingConfig
from fastrl.errors import ConfigError
from fastrl.shared.rollout_buffer import Episodes
from fastrl.training import train
from fastrl.training.metrics import MetricsLog, read_rows
from fastrl.training.run_directory import RunDirectory
from fastrl.training.window import Update, Window
from tests.training.clockwork import small_run


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", small_run(tmp_path / "run"))
    yield run
    run.close()


def strict(constant):
    raise ValueError(f"{constant} is no JSON")


def log_of(run, steps=0, **logging):
    settings = LoggingConfig(**({"tensorboard": False} | logging))
    return MetricsLog(run, small_run(run.path, logging=settings), steps)


def test_rows_are_json_even_where_numbers_are_not(run):
    log = log_of(run)
    log.write("training", {"steps": 10, "loss": float("nan"), "return_mean": float("inf")})
    log.write("evaluation", {"steps": 10, "return_mean": 3.5})
    log.close()
    lines = run.metrics.read_text().splitlines()
    rows = [json.loads(line, parse_constant=strict) for line in lines]
    assert rows == [
        {"kind": "training", "steps": 10, "loss": None, "return_mean": None},
        {"kind": "evaluation", "steps": 10, "return_mean": 3.5},
    ]


def test_row_can_be_read_while_training_goes_on(run):
    log = log_of(run)
    log.write("training", {"steps": 10})
    assert [row["steps"] for row in read_rows(run.metrics)] == [10]
    log.close()


def test_later_rows_are_dropped_where_a_run_goes_on(run):
    log = log_of(run)
    for steps in (10, 20, 30):
        log.write("training", {"steps": steps})
    log.close()
    with run.metrics.open("a") as file:
        file.write('{"kind": "trai')
    log = log_of(run, steps=20)
    log.write("training", {"steps": 25})
    log.close()
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["steps"] for line in lines] == [10, 20, 25]


def test_tensorboard_reads_what_was_written(run):
    log = log_of(run, tensorboard=True)
    for steps in (100, 200):
        row = {"steps": steps, "loss": steps / 10, "return_mean": float("nan")}
        log.write("training", row)
    log.close()
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert events.Tags()["scalars"] == ["training/loss"]
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(100, 10), (200, 20)]


def test_missing_wandb_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.training.metrics.find_spec", lambda name: None)
    config = small_run(tmp_path / "run", logging=LoggingConfig(wandb=True))
    with pytest.raises(ConfigError, match=r"logging\.wandb: .*pip install 'fastrl\[wandb\]'"):
        train(config)
    assert not list(tmp_path.iterdir())


def test_wandb_gets_every_row_and_the_run_can_be_resumed(run, monkeypatch):
    said = []
    wandb_run = SimpleNamespace(
        log=lambda row: said.append(row),
        define_metric=lambda name, step_metric: said.append((name, step_metric)),
        finish=lambda: said.append("finish"),
    )

    def init(**arguments):
        said.append((arguments["id"], arguments["resume"], arguments["config"]["seed"]))
        return wandb_run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = log_of(run, wandb=True)
    log.write("training", {"steps": 5, "loss": 2.0, "entropy": float("nan")})
    log.close()
    assert said == [
        ("run", "allow", 3),
        ("*", "steps"),
        {"training/steps": 5, "training/loss": 2.0, "steps": 5},
        "finish",
    ]


def update(steps, metrics, returns=(), sampling_s=0.0, learning_s=0.0, lag=0.0):
    numbers = np.asarray(returns, np.float64)
    nowhere = np.zeros(len(numbers), np.int64)
    episodes = Episodes(numbers, numbers.astype(np.int64), nowhere, nowhere)
    return Update(steps, steps // 10, 10, episodes, metrics, lag, sampling_s, learning_s)


def test_window_averages_what_was_said_and_counts_the_rest(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("fastrl.training.window.time.perf_counter", lambda: clock.now)
    window = Window(wall_s=50.0, episodes=7)
    window.add(update(10, {"loss": 1.0}, (4.0,), sampling_s=1.0, learning_s=0.5, lag=1.0))
    window.add(update(20, {"loss": 3.0}, (8.0, 9.0), sampling_s=1.0, learning_s=0.5))
    clock.now += 4.0
    row = window.row()
    assert row == {
        "steps": 20,
        "updates": 2,
        "episodes": 10,
        "wall_s": 54.0,
        "return_mean": 7.0,
        "length_mean": 7.0,
        "fps": 5.0,
        "sampling_fps": 10.0,
        "learning_fps": 20.0,
        "sampling_share": 0.5,
        "learning_share": 0.25,
        "policy_lag": 0.5,
        "loss": 2.0,
    }


def test_window_opens_anew_but_remembers_episodes(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("fastrl.training.window.time.perf_counter", lambda: clock.now)
    window = Window()
    window.add(update(10, {"loss": 1.0}, (4.0,)))
    clock.now = 1.0
    window.row()
    window.add(update(20, {"loss": 5.0}))
    clock.now = 3.0
    row = window.row(idle_s=1.0)
    assert (row["loss"], row["fps"], row["return_mean"]) == (5.0, 5.0, 4.0)
    assert row["sampling_fps"] == 10.0


def test_returns_are_those_of_the_last_hundred_episodes():
    window = Window()
    window.add(update(10, {}, [1000.0] * 50))
    window.add(update(20, {}, [1.0] * 100))
    assert window.row()["return_mean"] == 1.0
