from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastrl.config import LoggingConfig
from fastrl.errors import ConfigError
from fastrl.shared.rollouts import Episodes
from fastrl.training import resume, train
from fastrl.training.metrics import MetricsLog, check_loggers, read_rows
from fastrl.training.run_directory import RunDirectory
from fastrl.training.window import Update, Window
from tests.training.clockwork import small_run
from tests.training.fake_wandb import FakeWandb, UsageError


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


def test_tensorboard_reads_what_was_written_at_once(run):
    log = log_of(run, tensorboard=True)
    for steps in (100, 200):
        row = {"steps": steps, "loss": steps / 10, "return_mean": float("nan")}
        log.write("training", row)
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert events.Tags()["scalars"] == ["training/loss"]
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(100, 10), (200, 20)]
    log.close()


def test_missing_wandb_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.training.metrics.find_spec", lambda name: None)
    config = small_run(tmp_path / "run", logging=LoggingConfig(wandb=True))
    with pytest.raises(ConfigError, match=r"logging\.wandb: .*pip install .*\[wandb\]'"):
        train(config)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("fastrl.training.metrics.find_spec", lambda name: fake)
    return fake


def named(row):
    """Return a row as Weights & Biases gets it."""
    finite = {name: value for name, value in row.items() if name != "kind" and value is not None}
    return {f"{row['kind']}/{name}": value for name, value in finite.items()} | {
        "steps": row["steps"]
    }


def test_wandb_gets_every_row(run, wandb):
    log = log_of(run, wandb=True)
    log.write("training", {"steps": 5, "loss": 2.0, "entropy": float("nan")})
    log.close()
    ((id, rows),) = wandb.runs.items()
    assert rows == [{"training/steps": 5, "training/loss": 2.0, "steps": 5}]
    (started,) = wandb.started
    assert (started["id"], started["name"], started["config"]["seed"]) == (id, "run", 3)


def test_wandb_takes_project_entity_group_and_tags(run, wandb):
    options = {"project": "poles", "entity": "team", "group": "seeds", "tags": ["a", "b"]}
    log_of(run, loggers=[{"path": "wandb", "kwargs": options}]).close()
    (started,) = wandb.started
    assert {name: started[name] for name in options} == options


def test_wandb_gets_each_video_of_an_evaluation_once(run, wandb):
    run.videos.mkdir()
    (run.videos / "step_1.gif").touch()
    log = log_of(run, wandb=True)
    log.write("training", {"steps": 5})
    (run.videos / ".step_5.gif").touch()  # not finished
    (run.videos / "step_5.gif").touch()
    for steps in (6, 7):
        log.write("training", {"steps": steps})
    log.close()
    (rows,) = wandb.runs.values()
    videos = [row.get("evaluation/video") for row in rows]
    assert [video and video.name for video in videos] == [None, "step_5.gif", None]


def test_unknown_options_of_wandb_are_one_line(run, wandb):
    loggers = [{"path": "wandb", "kwargs": {"projekt": "poles"}}]
    with pytest.raises(ConfigError, match=r"loggers: .wandb. does not take .*projekt"):
        check_loggers(LoggingConfig(loggers=loggers))


def test_runs_of_the_same_name_elsewhere_are_other_runs_at_wandb(tmp_path, wandb):
    for place in "ab":
        path = tmp_path / place / "x:y"
        run = RunDirectory.create(path, small_run(path))
        log_of(run, wandb=True).close()
        run.close()
    assert len(wandb.runs) == 2


def test_wandb_goes_on_in_a_moved_directory_and_not_in_a_copied_one(tmp_path, wandb):
    path = tmp_path / "run"
    run = RunDirectory.create(path, small_run(path))
    log = log_of(run, wandb=True)
    log.write("training", {"steps": 5})
    log.close()
    run.close()
    moved = path.rename(tmp_path / "moved")
    copied = shutil.copytree(moved, tmp_path / "copied")
    for place in (moved, copied):
        run = RunDirectory.open(place)
        log = log_of(run, 5, wandb=True)
        log.write("training", {"steps": 10})
        log.close()
        run.close()
    assert [started["name"] for started in wandb.started] == ["run", "moved", "copied"]
    assert [[row["steps"] for row in rows] for rows in wandb.runs.values()] == [[5, 10], [5, 10]]


SESSIONS = st.tuples(st.integers(0, 8), st.integers(0, 4), st.booleans(), st.booleans())


@given(st.lists(SESSIONS, min_size=1, max_size=5))
def test_wandb_has_the_rows_of_the_file_whatever_was_taken_back(sessions):
    fake = FakeWandb()
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        path = Path(directory) / "run"
        run, at = RunDirectory.create(path, small_run(path)), 0
        for back, more, is_on, fake.rewinds in [*sessions, (0, 1, True, True)]:
            at = max(0, at - 10 * back)
            log = log_of(run, at, wandb=is_on)
            for _ in range(more):
                at += 10
                log.write("training", {"steps": at, "loss": float("nan"), "session": len(sessions)})
            log.close()
        run.close()
        rows = list(read_rows(run.metrics))
    assert [row["steps"] for row in rows] == list(range(10, at + 1, 10))
    assert fake.runs[fake.started[-1]["id"]] == [named(row) for row in rows]


def test_wandb_that_cannot_rewind_gets_a_new_run_with_all_rows(tmp_path, wandb, caplog):
    wandb.rewinds = False
    path = tmp_path / "run"
    train(small_run(path, logging=LoggingConfig(tensorboard=False, wandb=True, every_steps=64)))
    resume(path, checkpoint="step_000000000192")
    first, second = wandb.runs.values()
    assert [row["steps"] for row in first] == [row["steps"] for row in second]
    assert second == [named(row) for row in read_rows(path / "metrics.jsonl")]
    assert "UsageError: rewinding is not enabled; rows cannot be removed there" in caplog.text


@pytest.mark.parametrize("steps", [0, 192])
def test_resumed_run_takes_its_rows_back_at_wandb_and_tensorboard(tmp_path, wandb, steps):
    path = tmp_path / "a:b"
    train(small_run(path, logging=LoggingConfig(wandb=True, every_steps=64)))
    resume(path, ["total_steps=576"], checkpoint=f"step_{steps:012d}")
    rows = list(read_rows(path / "metrics.jsonl"))
    assert [row["steps"] for row in rows] == list(range(64, 577, 64))
    ids = [started["id"] for started in wandb.started]
    # Nothing is left to rewind to where all rows are taken back.
    assert (ids[0] == ids[1]) == (steps > 0)
    assert wandb.runs[ids[1]] == [named(row) for row in rows]
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [each.step for each in events.Scalars("training/loss")] == list(range(64, 577, 64))


def test_tensorboard_forgets_rows_that_a_session_without_it_took_back(run):
    for steps, is_on in ((0, True), (1, False), (3, True)):
        log = log_of(run, steps, tensorboard=is_on)
        for step in (steps + 1, steps + 2):
            log.write("training", {"steps": step, "loss": 1.0})
        log.close()
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [each.step for each in events.Scalars("training/loss")] == [1, 4, 5]


def test_wandb_that_does_not_start_is_one_line(tmp_path, wandb):
    def init(**arguments):
        raise UsageError("No API key configured.\n  Use `wandb login` to log in.")

    wandb.init = init
    config = small_run(tmp_path / "run", logging=LoggingConfig(wandb=True))
    told = r"^logging\.wandb: .* does not start: UsageError: No API key configured\. Use `wandb log"
    with pytest.raises(ConfigError, match=told):
        train(config)


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


def test_update_that_was_left_out_does_not_dilute_what_others_report():
    window = Window()
    for skipped in (0.0, 1.0, 0.0, 0.0):
        reported = {} if skipped else {"learning_rate": 0.001}
        window.add(update(10, {**reported, "skipped_updates": skipped}))
    row = window.row()
    assert (row["learning_rate"], row["skipped_updates"]) == (pytest.approx(0.001), 0.25)


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
