"""Markdown tables of results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from bench.results import Row, distinct
from bench.rounds import Rates, ratio


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose other columns are numbers."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def pivot(rows: Sequence[Row], down: str, across: str, cell: Callable[[Row], str]) -> str:
    """Return a table with a row per value of one key and a column per value of another.

    Args:
        rows: Rows of results, at most one per cell.
        down: Key of the table's rows.
        across: Key of the columns.
        cell: Function that formats a row of results.
    """
    columns, by_key = distinct(rows, across), {(row[down], row[across]): row for row in rows}
    lines = []
    for each in distinct(rows, down):
        cells = [by_key.get((each, column)) for column in columns]
        lines.append([_name(each), *("–" if row is None else cell(row) for row in cells)])
    head = "environments" if down == "num_envs" else down
    return table([head, *map(_name, columns)], lines)


def rates_table(rates: Rates, others: Mapping[str, str]) -> str:
    """Return a table of steps per second, with ratios to ``others``: heading and contestant."""
    head = ["", "steps/s, median", "min … max", *(f"× {name}" for name in others)]
    lines = []
    for name, each in rates.items():
        line = [name, f"{median(each):,.0f}", f"{min(each):,.0f} … {max(each):,.0f}"]
        lines.append([*line, *(f"{ratio(each, rates[other]):.2f}" for other in others.values())])
    return table(head, lines)


def origin(found: Mapping[str, Any]) -> str:
    """Return a sentence with the command, date and machine of the measurement."""
    used, kept = found["machine"], found["versions"]
    gpu = f", {used['gpu']}" if used["gpu"] else ""
    packages = ", ".join(f"{package} {version}" for package, version in kept.items())
    return (
        f"`{found['command']}`, {found['date']}, {used['cpu']}, {used['cores']} core(s){gpu}, "
        f"Python {used['python']}; {packages}."
    )


def _name(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
