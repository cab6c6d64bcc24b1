"""Training progress: a live panel on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastrl.live_display import FIRST_LINE_S, LineDisplay, display_on, waiting
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.metrics import Row

_REFRESHES_PER_S = 4
_LOSSES = ("loss", "policy_loss", "value_loss", "entropy")
_HEALTH = ("approx_kl", "clip_fraction", "explained_variance", "learning_rate")
_UNKNOWN = "-:--:--"
BUILDING = "building the environment …"


class Progress:
    """Shows the latest metrics inside a ``with`` block.

    Args:
        console: Console that shows it, or None.
        title: Title of the panel.
        total_steps: Steps of the whole run.
        every_s: Time between plain lines.
    """

    def __init__(
        self, console: Console | None, title: str, total_steps: int, every_s: float
    ) -> None:
        self._console, self._title, self._total_steps = console, title, total_steps
        self._every_s, self._printed_s = every_s, time.perf_counter()
        self._row: Row = {}
        self._limits: Mapping[str, float] = {}
        self._evaluation = ""
        self._activity: Callable[[], str] = lambda: "starting workers …"
        self._lines: LineDisplay | None = None
        self._has_begun = False
        self._steps = 0
        self._live = display_on(console, self._panel, _REFRESHES_PER_S)

    def advance(self, steps: int) -> None:
        """Set the number of steps so far; cheap enough for every update."""
        self._steps = steps
        if not self._has_begun:
            self._end_start()

    def show(self, row: Row, limits: Mapping[str, float] | None = None) -> None:
        """Show a row of training metrics: in the panel at once, as a line if one is due.

        Args:
            row: The metrics.
            limits: Limits of `WorkerTimes.write`, shown in the panel.
        """
        self._row, self._limits = row, limits or {}
        if self._is_due():
            self._print(self._line())

    def show_evaluation(self, result: EvaluationResult, steps: int) -> None:
        """Show an evaluation of the policy after ``steps`` steps."""
        info = "".join(f", {name} {mean:.4g}" for name, mean in result.info_means().items())
        self._evaluation = (
            f"{result.return_mean:,.1f} ± {result.return_std:,.1f} over {len(result.returns)} "
            f"episodes at {steps:,} steps{info}"
        )
        self._print(f"evaluation: return {self._evaluation}")
        if result.remark():
            self.remark(f"evaluation: {result.remark()}")

    def say(self, activity: str) -> None:
        """Show an activity other than training."""
        self._activity = lambda: activity
        self._print(activity)

    def update(self, activity: str) -> None:
        """Show the progress of an activity: in the panel at once, as a line if one is due."""
        self._activity = lambda: activity
        if self._is_due():
            self._print(activity)

    def watch_start(self, starting: Callable[[], str]) -> None:
        """Show the progress of the start until the first update.

        Args:
            starting: Returns the progress in words; may be called in another thread.
        """
        self._activity = starting
        if self._live is None and self._console is not None and self._lines is None:
            first_s = min(FIRST_LINE_S, self._every_s)
            self._lines = LineDisplay(
                self._console, lambda: self._activity(), first_s, self._every_s
            )
            self._lines.start()

    def remark(self, line: str) -> None:
        """Print a permanent line, above the panel if there is one."""
        if self._console is not None:
            try:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            except OSError:  # the terminal or a pipe's reader was closed; training continues
                self._console = None

    def __enter__(self) -> Self:
        """Start showing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        self._end_start()
        if self._live is not None:
            with suppress(OSError):  # the terminal was closed
                self._live.stop()

    def _is_due(self) -> bool:
        now_s = time.perf_counter()
        is_due = now_s - self._printed_s >= self._every_s
        if is_due:
            self._printed_s = now_s
        return is_due

    def _end_start(self) -> None:
        self._has_begun = True
        if self._lines is not None:
            self._lines.stop()
            self._lines = None
        self._activity = lambda: ""

    def _print(self, line: str) -> None:
        if self._live is None:
            self.remark(line)

    def _line(self) -> str:
        row = self._row
        parts = [
            f"{self._steps:>11,} / {self._total_steps:,} steps",
            f"{row['fps']:,.0f} steps/s",
            f"return {_number(row, 'return_mean')}",
            f"loss {_number(row, 'loss')}",
            f"kl {_number(row, 'approx_kl')}",
            f"{self._time_left()} left",
        ]
        return "  ".join(parts)

    def _panel(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        bar = ProgressBar(total=self._total_steps, completed=self._steps, width=30)
        counted = Text(f"{self._steps:,} / {self._total_steps:,}   {self._time_left()} left")
        steps = Table.grid(padding=(0, 2))
        steps.add_row(bar, counted)
        table.add_row("steps", steps)
        if self._row:
            for label, text in self._rows(self._row).items():
                table.add_row(label, text)
        if self._evaluation:
            table.add_row("evaluation", self._evaluation)
        if activity := self._activity():
            table.add_row("", activity)
        return Panel(table, title=Text(self._title), title_align="left", expand=False)

    def _rows(self, row: Row) -> Mapping[str, str]:
        return {
            "steps/s": f"{row['fps']:,.0f} end to end   {row['sampling_fps']:,.0f} sampling   "
            f"{row['learning_fps']:,.0f} learning",
            **self._limit(row),
            "time": f"{row['sampling_share']:.0%} waiting for rollouts   "
            f"{row['learning_share']:.0%} learning   policy lag {row['policy_lag']:.2g}",
            "return": f"{_number(row, 'return_mean')}   length {_number(row, 'length_mean')}   "
            f"({row['episodes']:,} episodes)",
            "losses": _numbers(row, _LOSSES),
            "update": _numbers(row, _HEALTH),
        }

    def _limit(self, row: Row) -> Mapping[str, str]:
        limits = self._limits
        if not limits:
            return {}
        sampled, trained = (
            f"{limits[name]:,.0f} {label} ({row[reached] / limits[name]:.0%})"
            for name, label, reached in (
                ("policy", "with policy", "sampling_fps"),
                ("training", "with training", "fps"),
            )
        )
        return {"limit": f"{limits['environment']:,.0f} environment   {sampled}   {trained}"}

    def _time_left(self) -> str:
        fps = float(self._row.get("fps", 0.0))
        return _duration(max(0, self._total_steps - self._steps) / fps) if fps else _UNKNOWN


def estimate(episodes: int) -> Callable[[int, int], str]:
    """Start the clock of an evaluation.

    Returns:
        A function from the numbers of episodes and steps so far to the progress in words, with
        the estimated time left after the first episode.
    """
    began_s = time.perf_counter()

    def after(done: int, steps: int) -> str:
        elapsed_s = time.perf_counter() - began_s
        left = _duration(elapsed_s * (episodes - done) / done) if done else _UNKNOWN
        return f"{done} of {episodes} episodes, {steps:,} steps, {left} left"

    return after


@contextmanager
def watched_episodes(
    console: Console | None, episodes: int
) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of an evaluation; see `fastrl.live_display.waiting`.

    Yields:
        A function to call with the numbers of episodes and steps so far, at any time.
    """
    progress_after, shown_s = estimate(episodes), -math.inf
    with waiting(console, "building environments …") as say:

        def watch(done: int, steps: int) -> None:
            nonlocal shown_s
            now_s = time.perf_counter()
            if now_s - shown_s >= 1 / _REFRESHES_PER_S:
                shown_s = now_s
                say(progress_after(done, steps))

        yield watch


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 1e8))))


def _numbers(row: Row, names: tuple[str, ...]) -> str:
    return "   ".join(f"{name} {_number(row, name)}" for name in names if name in row)


def _number(row: Row, name: str) -> str:
    value = row.get(name, math.nan)
    return "-" if math.isnan(value) else f"{value:,.4g}"
