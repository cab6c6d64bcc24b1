"""Ctrl-C and SIGTERM: training ends at a place where it can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(BaseException):
    """Breaks off what need not be finished; no error, so that no ``except Exception`` takes it."""


class Interrupts:
    """While it is entered, the first Ctrl-C or SIGTERM is a request, and the second ends at once.

    Signals reach the main thread only; entered in another one, this never sees a request.

    Attributes:
        requested: The signal that asked to end, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._breakable = False
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Break off what is done in here when a request comes, or has come.

        Raises:
            StopSignal: A request came.
        """
        self._breakable = True
        try:
            if self.requested is not None:
                raise StopSignal
            yield
        finally:
            self._breakable = False

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        if self._breakable:
            raise StopSignal
