"""Frames per second while they are measured: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.text import Text

from fastrl.live_display import LiveDisplay
from fastrl.workers.throughput_meter import ThroughputMeter, steps_per_s

_SPAN = 20
"""Readings over which the live figure is averaged: one second; more where none made a step."""


class LiveFps:
    """Shows a meter's latest figure until it is left.

    Args:
        console: Where to show it; nowhere if None.
        interval_s: Time between plain lines where the console is not a terminal.
    """

    def __init__(self, console: Console | None, interval_s: float = 2.0) -> None:
        self._console, self._interval_s = console, interval_s
        self._meter: ThroughputMeter | None = None
        self._starting: Callable[[], str] = lambda: "starting workers …"
        self._instead = ""
        self._done = threading.Event()
        self._live: LiveDisplay | None = None
        self._thread: threading.Thread | None = None

    def watch(self, meter: ThroughputMeter, starting: Callable[[], str] | None = None) -> None:
        """Show this meter from now on.

        Args:
            meter: Reads the counters.
            starting: Returns in words how far the start is; shown until there are steps.
        """
        self._meter, self._starting = meter, starting or self._starting

    @contextmanager
    def showing(self, text: str) -> Iterator[None]:
        """Show a text instead, while nothing is sampled."""
        self._instead = text
        try:
            yield
        finally:
            self._instead = ""

    def __enter__(self) -> Self:
        """Start showing."""
        if self._console is not None and self._console.is_terminal:
            self._live = LiveDisplay(self._console, self._line)
            self._live.start()
        elif self._console is not None:
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        self._done.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def _line(self) -> Text:
        if self._instead:
            return Text(self._instead)
        readings = self._meter.readings if self._meter else []
        if not readings or not readings[-1].env_steps:
            return Text(self._starting())
        last = readings[-1]
        span = _SPAN
        while span < len(readings) and readings[-span].env_steps == last.env_steps:
            span *= 2  # steps that take seconds
        fps = steps_per_s(readings[-span:][0], last)
        return Text(f"{fps:>12,.0f} frames/s   {last.env_steps:>14,} frames")

    def _print_lines(self) -> None:
        assert self._console is not None
        while not self._done.wait(self._interval_s):
            self._console.print(self._line())
