"""Shows frames per second during a measurement: a live line, or plain lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.text import Text

from fastrl import live_display
from fastrl.sampling.sampler import SamplerStats

_SPAN_NS = 1e9
"""Seconds over which the shown speed is averaged; longer if no step was made."""


class LiveFps:
    """Shows the latest frames per second inside a ``with`` block.

    Args:
        console: Console that shows it, or None.
        interval_s: Seconds between plain lines if the console is not a terminal; two seconds
            by default.
    """

    def __init__(self, console: Console | None, interval_s: float | None = None) -> None:
        self._readings: Sequence[SamplerStats] = ()
        self._starting: Callable[[], str] = lambda: "starting workers …"
        self._instead = ""
        every_s = live_display.FIRST_LINE_S if interval_s is None else interval_s
        self._display = live_display.display_on(console, self._line, lines_s=(every_s, every_s))

    def watch(
        self, readings: Sequence[SamplerStats], starting: Callable[[], str] | None = None
    ) -> None:
        """Show these readings from now on.

        Args:
            readings: The sampler's statistics so far; the list grows.
            starting: Returns the progress of the start in words, shown until the first step.
        """
        self._readings, self._starting = readings, starting or self._starting

    @contextmanager
    def showing(self, text: str) -> Iterator[None]:
        """Show a text instead of the speed, while nothing is sampled."""
        self._instead = text
        try:
            yield
        finally:
            self._instead = ""

    def __enter__(self) -> Self:
        """Start showing."""
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        if self._display is not None:
            self._display.stop()

    def _line(self) -> Text:
        if self._instead:
            return Text(self._instead)
        readings = self._readings
        if not readings or not readings[-1].frames:
            return Text(self._starting())
        first = last = readings[-1]
        for first in reversed(readings):
            if last.time_ns - first.time_ns >= _SPAN_NS and last.frames > first.frames:
                break
        fps = (last - first).steps_per_s
        return Text(f"{fps:>12,.0f} frames/s   {last.frames:>14,} frames")
