"""Frames per second while they are measured: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fastrl.workers.throughput_meter import ThroughputMeter, steps_per_s

_SPAN = 20
"""Readings over which the live figure is averaged: one second."""


class LiveFps:
    """Shows a meter's latest figure until it is left.

    Args:
        console: Where to show it.
        interval_s: Time between plain lines where the console is not a terminal.
    """

    def __init__(self, console: Console, interval_s: float = 2.0) -> None:
        self._console, self._interval_s = console, interval_s
        self._meter: ThroughputMeter | None = None
        self._done = threading.Event()
        self._live = Live(console=console, get_renderable=self._line, transient=True)
        self._thread = threading.Thread(target=self._print_lines, daemon=True)

    def watch(self, meter: ThroughputMeter) -> None:
        """Show this meter from now on."""
        self._meter = meter

    def __enter__(self) -> Self:
        """Start showing."""
        if self._console.is_terminal:
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        self._done.set()
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._thread.join()

    def _line(self) -> Text:
        readings = self._meter.readings[-_SPAN:] if self._meter else []
        if len(readings) < 2:
            return Text("starting workers …")
        fps = steps_per_s(readings[0], readings[-1])
        return Text(f"{fps:>12,.0f} frames/s   {readings[-1].env_steps:>14,} frames")

    def _print_lines(self) -> None:
        while not self._done.wait(self._interval_s):
            self._console.print(self._line())
