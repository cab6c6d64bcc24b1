"""Whatever has to be closed is: at the end of a ``with`` block, and every one of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, Self, TypeVar


class Closable(Protocol):
    """Holds something, such as processes or a simulator, until it is closed."""

    def close(self) -> object:
        """Let go of it."""
        ...


Held = TypeVar("Held", bound=Closable)


class Closing(ABC):
    """Closes itself at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; safe to call twice."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


@contextmanager
def closed_after(held: Closable) -> Iterator[None]:
    """Close at the end of a block; what ended the block goes before what closing raises."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            held.close()
        raise
    held.close()


def build_all(built: Iterable[Held]) -> list[Held]:
    """Return everything that ``built`` yields; if it raises, those that were built are closed."""
    held: list[Held] = []
    try:
        held.extend(built)
    except BaseException:
        with suppress(Exception):
            close_all(held)
        raise
    return held


def close_all(held: Iterable[Closable], begin: Callable[[], None] = lambda: None) -> None:
    """Close every one, the last first, even where closing another one raises.

    Args:
        held: What to close.
        begin: Called just before each close.

    Raises:
        Exception: The last that was raised.
    """
    with ExitStack() as stack:
        for each in held:
            stack.callback(each.close)
            stack.callback(begin)
