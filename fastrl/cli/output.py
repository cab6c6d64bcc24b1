"""What the command line writes: results to standard output, all else to standard error."""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console


def write(text: str) -> None:
    """Write a result as it is: not wrapped, not coloured."""
    Console(soft_wrap=True).out(text, highlight=False)


def note(text: str) -> None:
    """Write a remark on standard error."""
    Console(stderr=True, soft_wrap=True).out(text, highlight=False)


def complain(text: str) -> None:
    """Write an error on standard error."""
    note(f"fastrl: error: {text}")


def table_console() -> Console:
    """Return a console that cuts tables to the terminal's width, and not in a pipe."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=200)


def say_what_can_be_said() -> None:
    """Let characters that a terminal or a file has no code for be question marks, and no errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_lost_output() -> None:
    """Give up what can no longer be written, as after the terminal was closed.

    Python would try once more at its end, and end with 120 instead of the command's exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def one_line(text: str) -> str:
    """Return text without line breaks."""
    return " ".join(text.split())
