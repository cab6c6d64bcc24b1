"""Closing resources at the end of a block, before a signal too, and several if some fail."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Protocol, Self, TypeVar

_FAILURES = (Exception, SystemExit, GeneratorExit)
"""Errors of a close that give way to the error of a block."""


class Closable(Protocol):
    """Holds resources, such as processes or a simulator, until it is closed."""

    def close(self) -> object:
        """Release them."""


Held = TypeVar("Held", bound=Closable)


class Closing(ABC):
    """A base class that is closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources; safe to call twice."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Terminated(BaseException):
    """Leaves a block before a signal ends the process; users' code must not catch it."""


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block before they end the process.

    So `finally` clauses in the block remove files and close what they have opened. Signals that
    are ignored or handled already stay as they are. Does nothing outside of the main thread.

    Raises:
        Terminated: Within the block, at the first of these signals.
    """
    owner = os.getpid()
    arrived: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork, which inherits this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        arrived.append(number)
        if len(arrived) == 1:
            raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    fatal = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    heard = [each for each in fatal if signal.getsignal(each) == signal.SIG_DFL]
    try:
        for each in heard:
            signal.signal(each, leave)
        yield
    finally:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)
        if arrived:
            os.kill(owner, arrived[0])


@contextmanager
def closed_after(held: Closable) -> Iterator[None]:
    """Close at the end of a block; an error of the block takes precedence over one of closing."""
    with closing_on_error(held):
        yield
    held.close()


@contextmanager
def closing_on_error(
    *held: Closable, but: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Close all if the block raises an error other than ``but``; its error takes precedence."""
    try:
        yield
    except but:
        raise
    except BaseException:
        with suppress(*_FAILURES):
            close_all(held)
        raise


def build_all(built: Iterable[Held]) -> list[Held]:
    """Return all items of ``built``; if it raises, close the items so far."""
    held: list[Held] = []
    try:
        held.extend(built)
    except BaseException:
        with suppress(*_FAILURES):
            close_all(held)
        raise
    return held


def close_all(held: Iterable[Closable], begin: Callable[[], None] = lambda: None) -> None:
    """Close all, the last first, even if some raise.

    Args:
        held: Objects to close.
        begin: Called just before each close.

    Raises:
        Exception: The last error that was raised.
    """
    with ExitStack() as stack:
        for each in held:
            stack.callback(each.close)
            stack.callback(begin)
