"""The errors of fastrl, each one line, and functions that turn any error into one line."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

USERS_FAILURES = (Exception, SystemExit, GeneratorExit)
"""Errors of users' code that must not end this process, unlike an interrupt."""


def one_line(value: object, width: int | None = 80, text_of: Callable[[object], str] = str) -> str:
    """Return a text, an error's message or a value on one line, even if it cannot be printed.

    Args:
        value: Value to show.
        width: Most characters; None for all of them.
        text_of: ``str``, or ``repr`` to show a value as code.
    """
    try:
        text = " ".join(text_of(value).split())
    except Exception:  # of the value's own method
        text = f"a {type(value).__name__} whose text cannot be printed"
    return text if width is None or len(text) <= width else f"{text[:width]}…"


def cause(error: BaseException) -> str:
    """Return type and message of an error on one line; its place if it has no message."""
    text = one_line(error, None)
    return f"{type(error).__name__}{f': {text}' if text else _place(error)}"


def _place(error: BaseException) -> str:
    """Return the place where an error was raised, with the line of code if its file can be read."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    line = f": {last.line}" if last.line else ""
    return f" at {last.filename}:{last.lineno}{line}"


def printable(text: str) -> str:
    """Return a text without line breaks, and with escapes for characters that no screen shows."""
    if text.isprintable():
        return text
    line = one_line(text, None)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class FastrlError(Exception):
    """Base of all errors raised by fastrl; the command line prints it as one line.

    Args:
        message: Text of the error. Line breaks and control characters, which may come from user
            input, are removed.

    Attributes:
        kind: Section of ``docs/errors.md`` about such errors, which the command line prints.
    """

    kind: ClassVar[str] = "other"

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


@contextmanager
def raised_as(kind: type[FastrlError], what: str, width: int | None = None) -> Iterator[None]:
    """Turn what users' code or another package raises in the block into one line.

    fastrl's own errors pass.

    Args:
        kind: Type of the error that is raised.
        what: What failed; the cause follows.
        width: Most characters of the cause; None for all of them.
    """
    try:
        yield
    except FastrlError:
        raise
    except USERS_FAILURES as error:
        raise kind(f"{what}: {cause(error)[:width]}") from error


class ConfigError(FastrlError):
    """A configuration file, override or argument is wrong; the command line exits with code 2."""

    kind = "config"


class ArgumentError(ConfigError, ValueError):
    """An argument of a Python call is wrong; the call had no effect."""


class EnvError(FastrlError):
    """An environment cannot be built, or broke its contract while it was stepped."""

    kind = "environment"


class SpaceError(EnvError):
    """An observation or action space is of a kind that fastrl does not support."""

    kind = "space"


class CheckpointError(FastrlError):
    """A checkpoint is missing, damaged or not fastrl's."""

    kind = "checkpoint"


class WorkerError(FastrlError):
    """A worker process raised, died or overran its deadline.

    Attributes:
        worker: Name of the process, such as ``env-worker-3``.
        remote_traceback: The worker's own traceback, empty if it died without one.
    """

    kind = "worker"

    def __init__(self, worker: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.worker = worker
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        """Return the message, followed by the worker's own traceback if there is one."""
        message = super().__str__()
        return f"{message}\n\n{self.remote_traceback}" if self.remote_traceback else message

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str], dict[str, Any]]:
        """Pickle for another process."""
        return type(self), (self.worker, self.args[0], self.remote_traceback), vars(self)
