"""Every error that fastrl raises on purpose: one line that says what would be right."""

import traceback

USERS_FAILURES = (Exception, SystemExit, GeneratorExit)
"""What somebody else's code may raise that must not end this process, as an interrupt may."""


class FastrlError(Exception):
    """Base of all errors raised by fastrl; the command line prints it as one line.

    Args:
        message: What is wrong. Line breaks and control characters, which it may have from
            somebody's input, are taken out.
    """

    def __init__(self, message: str = "") -> None:
        if not message.isprintable():
            line = " ".join(message.split())
            message = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        super().__init__(message)


def cause(error: BaseException) -> str:
    """Return type and text of a foreign error on one line; its place where it has no text."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own __str__
        text = "(its message cannot be printed)"
    place = "" if text else _place(error)
    return f"{type(error).__name__}{f': {text}' if text else place}"


def _place(error: BaseException) -> str:
    """Return where an error was raised, with the line of code where its file can be read."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    line = f": {last.line}" if last.line else ""
    return f" at {last.filename}:{last.lineno}{line}"


class ConfigError(FastrlError):
    """A configuration file, override or argument is wrong; the command line exits with 2."""


class EnvError(FastrlError):
    """An environment cannot be built, or broke its contract while it was stepped."""


class SpaceError(EnvError):
    """An observation or action space is of a kind that fastrl does not support."""


class WorkerError(FastrlError):
    """A worker process raised, died or overran its deadline.

    Attributes:
        worker: Name of the process, such as ``env-worker-3``.
        remote_traceback: The worker's own traceback, empty if it died without one.
    """

    def __init__(self, worker: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.worker = worker
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        """Return the message, followed by the worker's own traceback where there is one."""
        message = super().__str__()
        return f"{message}\n\n{self.remote_traceback}" if self.remote_traceback else message
