"""Output of the command line: results go to standard output, all else to standard error."""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastrl.live_display import waiting

_NARROW = 60
"""Columns of a terminal below which a table is printed as lines."""


class QuietConsole(Console):
    """A console that becomes quiet once its reader has closed; rich's would end the process."""

    def on_broken_pipe(self) -> None:
        """Continue without output, as training matters more."""
        self.quiet = True


def loading() -> AbstractContextManager[object]:
    """Show on a terminal that packages are imported, which takes seconds."""
    return waiting(QuietConsole(stderr=True), "loading …", handles_sigterm=True)


def write(text: str) -> None:
    """Write a result without wrapping and colours."""
    QuietConsole(soft_wrap=True).out(text, highlight=False)


def write_json(tree: Any, file: Path | None = None) -> None:
    """Write a result as JSON, into a file if one is given."""
    text = json.dumps(tree, indent=2)
    if file is None:
        write(text)
    else:
        file.write_text(f"{text}\n", encoding="utf-8")


def write_wrapped(text: str) -> None:
    """Write a result; on a terminal in lines of its width, broken between words."""
    console = QuietConsole()
    if not console.is_terminal:
        write(text)
        return
    for line in textwrap.wrap(text, console.width, subsequent_indent="  ", break_on_hyphens=False):
        write(line)


def note(text: str) -> None:
    """Write a remark on standard error."""
    QuietConsole(stderr=True, soft_wrap=True).out(text, highlight=False)


def complain(text: str, kind: str) -> None:
    """Write an error on standard error.

    Args:
        text: The error; lines after the first one are a worker's traceback.
        kind: The section of ``docs/errors.md`` about it.
    """
    line, newline, rest = text.partition("\n")
    note(f"fastrl: error: {line} [{kind}]{newline}{rest}")


def table_console() -> Console:
    """Return a console of the terminal's width; of 200 columns in a pipe."""
    console = QuietConsole(markup=False, highlight=False)
    return (
        console if console.is_terminal else QuietConsole(markup=False, highlight=False, width=200)
    )


def show_tables(shown: Group | Table, console: Console | None = None) -> None:
    """Print a table, or a group of them; as lines where the terminal is too narrow for columns.

    Args:
        shown: What to print.
        console: By default `table_console`.
    """
    console = console or table_console()
    for part in shown.renderables if isinstance(shown, Group) else (shown,):
        is_wide = Measurement.get(console, console.options, part).maximum >= console.width
        if isinstance(part, Table) and is_wide and console.width < _NARROW:
            _list(part, console)
        else:
            console.print(part)


def _list(table: Table, console: Console) -> None:
    """Print each row as lines: the first cell, then the others with their column's header."""

    def say(text: object, indent: int) -> None:
        console.print(Padding(Text(str(text), overflow="fold"), (0, 0, 0, indent)))

    if table.title:
        say(table.title, 0)
    heads = [str(column.header) if table.show_header else "" for column in table.columns]
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        say(str(first).strip(), 0)
        for head, cell in zip(heads[1:], others, strict=True):
            if str(cell):
                say(f"{head}: {cell}".removeprefix(": "), 2)


def replace_unknown_characters() -> None:
    """Write question marks for characters that the encoding of a stream does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_closed_streams() -> None:
    """Open standard streams that were closed before this process started, on the null device.

    Otherwise the next file that is opened takes the descriptor, and output of native code would go
    into a checkpoint or into another process's pipe.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one, as those below are open now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def drop_lost_output() -> None:
    """Discard output that can no longer be written, as after the terminal was closed.

    Python would try again when it ends, and exit with 120 instead of the command's code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
