"""A live display on a terminal is removed at its end, also after errors."""

from __future__ import annotations

import io
import os
import signal
import sys
import termios
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest
from rich.console import Console

from fastrl.live_display import LineDisplay, waiting
from fastrl.training.progress import Progress, watched_episodes
from tests.terminal import Terminal

ROOT = Path(__file__).parents[1]
DISPLAY = """
import time
from rich.console import Console
from rich.panel import Panel
from fastrl.live_display import LiveDisplay

console = Console()
print("before")
try:
    with LiveDisplay(console, lambda: Panel("\\n".join(["drawn"] * LINES))):
        time.sleep(60)
except KeyboardInterrupt:
    print("after")
"""
PROGRESS = """
import time
from rich.console import Console
from fastrl.training.progress import Progress

print("before")
try:
    with Progress(Console(), "drawn, and wider than the terminal" * 3, 10_000, 5.0):
        time.sleep(60)
except KeyboardInterrupt:
    print("after")
"""
IN_THE_BACKGROUND = """
import os, sys, time
from rich.console import Console
from fastrl.live_display import LiveDisplay

child = os.fork()
if not child:
    os.setpgid(0, 0)  # as a shell does for a command that ends with &
    with LiveDisplay(Console(), lambda: "drawn"):
        time.sleep(0.3)
    os._exit(7)
_, status = os.waitpid(child, os.WUNTRACED)
print("stopped" if os.WIFSTOPPED(status) else f"ended with {os.WEXITSTATUS(status)}")
"""


@pytest.fixture
def terminal():
    """Return what starts a script on a terminal of that size."""
    started = []

    def start(script, rows=12):
        command = [sys.executable, "-c", textwrap.dedent(script)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        started.append(Terminal(command, 40, rows, cwd=ROOT, env=environment))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize(
    ("script", "rows"),
    [(DISPLAY.replace("LINES", "3"), 12), (DISPLAY.replace("LINES", "20"), 8), (PROGRESS, 12)],
    ids=["panel", "higher_than_the_terminal", "training"],
)
def test_nothing_is_left_after_control_c(terminal, script, rows):
    shown = terminal(script, rows)
    shown.wait_for("drawn")
    shown.type("\x03")
    assert shown.wait() == 0
    assert str(shown.screen).splitlines() == ["before", "after"]
    assert termios.tcgetattr(shown.theirs) == shown.before


def test_nothing_is_left_after_sigterm(terminal):
    shown = terminal(DISPLAY.replace("LINES", "3"))
    shown.wait_for("drawn")
    shown.process.terminate()
    assert shown.wait() == -signal.SIGTERM
    assert str(shown.screen) == "before"
    assert termios.tcgetattr(shown.theirs) == shown.before


def test_a_process_in_the_background_is_not_stopped_and_leaves_the_terminal_alone(terminal):
    shown = terminal(IN_THE_BACKGROUND)
    shown.wait()
    assert "ended with 7" in str(shown.screen)
    assert termios.tcgetattr(shown.theirs) == shown.before


class Notebook:
    """Stands for the display of a notebook's cell, and keeps what it shows."""

    def __init__(self):
        self.shown = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.update(data, raw=True)
        return self

    def update(self, data, *, raw):
        self.shown.append(data)


@pytest.fixture
def notebook(monkeypatch):
    found = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    module = types.ModuleType("IPython.display")
    module.display = found.display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return found


def test_progress_is_drawn_in_a_notebook_and_erased(notebook):
    console = Console(force_jupyter=True)
    with Progress(console, "PPO on CartPole", 10_000, 5.0) as progress:
        progress.advance(2_500)
        deadline = time.monotonic() + 60
        while len(notebook.shown) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    first, second, *_, last = notebook.shown
    assert "PPO on CartPole" in first["text/plain"]
    assert "2,500 / 10,000" in second["text/plain"]
    assert second["text/html"].startswith("<pre>")
    assert last == {"text/html": "", "text/plain": ""}


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_long_wait_is_lines_in_a_pipe_and_a_short_one_is_nothing(monkeypatch):
    out = io.StringIO()
    with waiting(Console(file=out), "short …"):
        pass
    monkeypatch.setattr("fastrl.live_display.FIRST_LINE_S", 0.01)
    monkeypatch.setattr("fastrl.live_display._EVERY_S", 0.01)
    with waiting(Console(file=out), "building [1] …") as say:
        until(lambda: "building" in out.getvalue())
        say("1 of 2 …")
        until(lambda: "1 of 2" in out.getvalue())
    assert out.getvalue() == "building [1] …\n1 of 2 …\n"


def test_lines_whose_reader_is_gone_end():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError("gone")

    calls = []
    with LineDisplay(Console(file=Gone()), lambda: calls.append(0) or len(calls), 0.001, 0.001):
        until(lambda: calls)
        time.sleep(0.05)
    assert len(calls) == 1


def test_nothing_is_shown_where_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    out = io.StringIO()
    with LineDisplay(Console(file=out), lambda: "never"):
        pass
    assert out.getvalue() == ""


def test_evaluation_is_watched_in_a_notebook(notebook):
    with watched_episodes(Console(force_jupyter=True), 10) as watch:
        watch(5, 1_000)
    assert len(notebook.shown) >= 2
