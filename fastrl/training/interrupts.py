"""Ctrl-C, SIGTERM and a lost terminal: training ends where it can be saved, or goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from fastrl.workers.descent import ignore_signal

HURRY_S = 5.0
"""How long after SIGTERM an update may still take; schedulers kill what is not gone in 10 s.

And how long after any request a rollout may, so that the episodes under way can be saved.
"""


class StopSignal(BaseException):
    """Breaks off what need not be finished; no error, so that no ``except Exception`` takes it."""


class Interrupts:
    """While it is entered, the first Ctrl-C or SIGTERM is a request, and the second ends at once.

    SIGHUP, which a closed terminal sends, changes nothing. Signals reach the main thread only;
    entered in another one, this never sees a request.

    Attributes:
        requested: The signal that asked to end, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._breakable = self._hurried = self._awaited = self._late = False
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Break off what is done in here when a request comes, or has come.

        Raises:
            StopSignal: A request came.
        """
        try:
            self._breakable = True
            if self.requested is not None:
                raise StopSignal
            yield
        finally:
            self._breakable = False

    @contextmanager
    def awaited(self, usual_s: float) -> Iterator[None]:
        """Break off what is done in here if it lasts longer than `HURRY_S` after a request.

        Args:
            usual_s: How long it usually takes. Where that is more, a request breaks it off at once.

        Raises:
            StopSignal: It did, or a request had come before.
        """
        if usual_s > HURRY_S:
            with self.breakable():
                yield
            return
        try:
            self._awaited = True
            if self.requested is not None:
                raise StopSignal
            yield
        finally:
            self._awaited = False

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Break off what is done in here if it lasts longer than `HURRY_S` after SIGTERM.

        Raises:
            StopSignal: It did.
        """
        try:
            self._hurried = True
            if self._late:
                raise StopSignal
            yield
        finally:
            self._hurried = False

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            handlers = {
                signal.SIGINT: self._handle,
                signal.SIGTERM: self._handle,
                signal.SIGHUP: ignore_signal,
                signal.SIGALRM: self._hurry,
            }
            self._before = {
                number: signal.signal(number, each) for number, each in handlers.items()
            }
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        if number == signal.SIGTERM or self._awaited:
            signal.setitimer(signal.ITIMER_REAL, HURRY_S)
        if self._breakable:
            raise StopSignal

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        self._late = self.requested == signal.SIGTERM
        if self._awaited or (self._hurried and self._late):
            raise StopSignal
