"""Consoles of rich, and tables on them; imported when a command shows progress or a table."""

from __future__ import annotations

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_NARROW = 60
"""Columns of a terminal below which a table is printed as lines."""


class QuietConsole(Console):
    """A console that becomes quiet when its reader closes; rich's would end the process."""

    def on_broken_pipe(self) -> None:
        """Continue without output, as training is more important."""
        self.quiet = True


def table_console() -> Console:
    """Return a console of the terminal's width; of 200 columns in a pipe."""
    console = QuietConsole(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


def show_tables(shown: Group | Table, console: Console | None = None) -> None:
    """Print a table, or a group of them; as lines if the terminal is too narrow for columns.

    Args:
        shown: Table or group to print.
        console: Console; by default `table_console`.
    """
    console = console or table_console()
    for part in shown.renderables if isinstance(shown, Group) else (shown,):
        is_wide = Measurement.get(console, console.options, part).maximum >= console.width
        if isinstance(part, Table) and is_wide and console.width < _NARROW:
            _list(part, console)
        else:
            console.print(part)


def _list(table: Table, console: Console) -> None:
    """Print each row as lines, one per cell, with the header of its column."""

    def say(text: object, indent: int) -> None:
        console.print(Padding(Text(str(text), overflow="fold"), (0, 0, 0, indent)))

    if table.title:
        say(table.title, 0)
    heads = [str(column.header) if table.show_header else "" for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        for number, (head, cell) in enumerate(zip(heads, row, strict=True)):
            if text := str(cell).strip():
                say(f"{head}: {text}".removeprefix(": "), 2 * (number > 0))
