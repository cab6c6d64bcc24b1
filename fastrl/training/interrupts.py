"""Interrupts by Ctrl-C, SIGTERM and a lost terminal: training ends at a point that can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Self

from fastrl.workers.descent import ignore_signal

HURRY_S = 5.0
"""Seconds that an update may still take after SIGTERM; schedulers send SIGKILL after about 10 s.

A rollout may take as long after any request, so that the running episodes can be saved.
"""


class StopSignal(BaseException):
    """Interrupts work that may be lost; no ``Exception``, so that user code does not catch it."""


class Interrupts:
    """In a ``with`` block the first Ctrl-C or SIGTERM is a request to end; the second one raises.

    SIGHUP, which a closed terminal sends, is ignored. Python delivers signals to the main thread
    only, so in other threads there are no requests.

    Attributes:
        requested: The signal that requested the end, or None.

    Args:
        is_repeated: Whether one request may arrive as several signals, such as those of a launcher
            and of other ranks; then only the first counts.
    """

    def __init__(self, *, is_repeated: bool = False) -> None:
        self.requested: signal.Signals | None = None
        self._is_repeated = is_repeated
        self._block = ""
        self._is_late = False
        self._before: dict[signal.Signals, Any] = {}

    def request(self, number: int) -> None:
        """Act as if the main thread had received a signal; may be called from any thread."""
        if self._before:
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    def breakable(self) -> AbstractContextManager[None]:
        """Interrupt the block at a request, or at once after one.

        Raises:
            StopSignal: There was a request.
        """
        return self._in("breakable")

    def awaited(self, usual_s: float) -> AbstractContextManager[None]:
        """Interrupt the block if it takes longer than `HURRY_S` after a request.

        Args:
            usual_s: Usual duration of the block. If that is longer, it is interrupted at once.

        Raises:
            StopSignal: The block was interrupted, or there was a request before it.
        """
        return self._in("breakable" if usual_s > HURRY_S else "awaited")

    def hurried(self) -> AbstractContextManager[None]:
        """Interrupt the block if it takes longer than `HURRY_S` after SIGTERM.

        Raises:
            StopSignal: The block was interrupted.
        """
        return self._in("hurried")

    @contextmanager
    def _in(self, block: str) -> Iterator[None]:
        try:
            self._block = block
            if self._is_late if block == "hurried" else self.requested is not None:
                raise StopSignal
            yield
        finally:
            self._block = ""

    def __enter__(self) -> Self:
        """Install the signal handlers."""
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
        """Restore the earlier signal handlers."""
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if self._is_repeated:
                return
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        if number == signal.SIGTERM or self._block == "awaited":
            signal.setitimer(signal.ITIMER_REAL, HURRY_S)
        if self._block == "breakable":
            raise StopSignal

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        self._is_late = self.requested == signal.SIGTERM
        if self._block == "awaited" or (self._block == "hurried" and self._is_late):
            raise StopSignal
