"""What is shown while throughput is measured."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from rich.console import Console

from fastrl.sampling import SamplerStats
from fastrl.throughput.live import LiveFps
from fastrl.workers.handoff import Counter

SECOND_NS = 1_000_000_000


def reading(at_s, env_steps):
    counters = np.zeros((1, len(Counter)), np.int64)
    counters[0, Counter.ENV_STEPS] = env_steps
    return SamplerStats.of_counters(at_s * SECOND_NS, ("env-worker-0",), counters)


@pytest.fixture(params=[False, True], ids=["lines", "terminal"])
def shown(request):
    """Return what waits until a text is shown, or fails, and the live display."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=request.param, width=80)
    live = LiveFps(console, interval_s=0.01)

    def wait_for(text):
        deadline = time.monotonic() + 30
        while text not in out.getvalue():
            assert time.monotonic() < deadline, out.getvalue()
            time.sleep(0.01)

    with live:
        yield live, wait_for


def test_figures_follow_the_meter_and_give_way_to_what_else_goes_on(shown):
    live, wait_for = shown
    wait_for("starting workers …")
    live.watch([reading(0, 0), reading(2, 3000)])
    wait_for("1,500 frames/s")
    with live.showing("measuring the limit …"):
        wait_for("measuring the limit …")
    live.watch([reading(0, 0), reading(1, 77)])
    wait_for("77 frames/s")


def test_how_far_the_start_is_gives_way_to_frames_from_the_first_on(shown):
    live, wait_for = shown
    seen = iter(range(1000))
    readings = []
    live.watch(readings, lambda: f"starting workers … {next(seen)} of 999 are ready")
    wait_for("starting workers … 1 of 999 are ready")
    readings.append(reading(0, 0))
    wait_for("starting workers … 3 of 999 are ready")
    live.watch([reading(0, 0), reading(1, 8), reading(2, 8)])
    wait_for(" 8 frames")


def test_steps_that_take_seconds_have_a_speed(shown):
    live, wait_for = shown
    readings = [reading(at_s, 100 * (at_s // 30)) for at_s in range(90)]
    live.watch(readings)
    wait_for("3 frames/s")


def test_without_a_console_nothing_is_shown(capsys):
    with LiveFps(None) as live, live.showing("measuring the limit …"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_wait_is_one_line_in_a_pipe():
    out = io.StringIO()
    with LiveFps(Console(file=out), interval_s=0.01) as live, live.showing("measuring the limit …"):
        time.sleep(0.2)
    assert out.getvalue().count("measuring the limit …") == 1
