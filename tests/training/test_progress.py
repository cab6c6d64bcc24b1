from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from fastrl.training.evaluation import EvaluationResult
from fastrl.training.progress import Progress

ROW = {
    "steps": 5000,
    "episodes": 30,
    "return_mean": 123.4,
    "length_mean": 99.0,
    "fps": 1000.0,
    "sampling_fps": 3000.0,
    "learning_fps": 1500.0,
    "sampling_share": 0.3,
    "learning_share": 0.6,
    "policy_lag": 0.0,
    "loss": 0.25,
    "approx_kl": 0.01,
    "clip_fraction": 0.1,
    "explained_variance": 0.5,
}
LIMITS = {"environment": 8000.0, "policy": 5000.0, "training": 2000.0}


def shown(every_s, *, terminal=False):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    progress = Progress(console, "CartPole-v1 [bold]", 10_000, every_s)
    with progress:
        progress.advance(5000)
        progress.show(ROW, LIMITS)
        progress.show_evaluation(EvaluationResult((400.0, 500.0), (400, 500)), 4000)
        progress.say("evaluating …")
        deadline = time.monotonic() + 30
        while "evaluating …" not in file.getvalue():  # drawn four times a second
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = shown(every_s=1e-9).splitlines()
    assert lines == [
        "      5,000 / 10,000 steps  1,000 steps/s  return 123.4  loss 0.25  kl 0.01  0:00:05 left",
        "evaluation: return 450.0 ± 50.0 over 2 episodes at 4,000 steps",
        "evaluating …",
    ]


def test_lines_come_no_more_often_than_wanted():
    assert "steps/s" not in shown(every_s=1000.0)


def test_panel_on_a_terminal():
    text = shown(every_s=5.0, terminal=True)
    for part in (
        "CartPole-v1 [bold]",
        "5,000 / 10,000",
        "0:00:05 left",
        "1,000 end to end",
        "3,000 sampling",
        "8,000 environment   5,000 with policy (60%)   2,000 with training (50%)",
        "30% waiting for rollouts",
        "123.4",
        "clip_fraction 0.1",
        "450.0 ± 50.0 over 2 episodes",
        "evaluating …",
    ):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_the_start_is_told_until_the_first_update(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    seen = iter(range(1000))
    progress = Progress(console, "", 10_000, 0.01)
    with progress:
        progress.watch_start(lambda: f"{next(seen)} of 999 environments are built")
        deadline = time.monotonic() + 30
        while "3 of 999 environments are built" not in file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        progress.advance(5)
        time.sleep(0.1)
        told = next(seen)
        time.sleep(0.3)
        assert next(seen) == told + 1


@pytest.mark.parametrize("missing", ["return_mean", "loss"])
def test_numbers_that_are_not_there_yet_are_dashes(missing):
    file = io.StringIO()
    progress = Progress(Console(file=file, width=120), "", 10_000, 1e-9)
    progress.show(ROW | {missing: float("nan")})
    assert " - " in file.getvalue()


def test_silence_is_possible(capfd):
    with Progress(None, "", 10, 1e-9) as progress:
        progress.advance(5)
        progress.show(ROW)
        progress.say("evaluating …")
    assert capfd.readouterr() == ("", "")
