"""What the benchmarks of native environments share: rounds in turn, and a report that adds up.

Every round measures each contestant once, in turn; only ratios within a round count, as the speed
of a machine drifts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastrl.machine import circumstances

Steps = Callable[[], int]
"""Takes some steps of a contestant, and says how many."""
Rates = Mapping[str, list[float]]
"""Steps per second of each round, by contestant."""

_PEER_PACKAGES = ("envpool", "mjbatch", "jax", "craftax")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    contestants: Mapping[str, Steps], rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the steps per second of each contestant in each round.

    Args:
        contestants: By label.
        rounds: How many.
        seconds: How long each contestant's turn is, in wall time.
        clock: What the steps are divided by.
    """
    rates: dict[str, list[float]] = {label: [] for label in contestants}
    for _ in range(rounds):
        for label, steps in contestants.items():
            steps()
            start, deadline, taken = clock(), time.perf_counter() + seconds, 0
            while time.perf_counter() < deadline:
                taken += steps()
            rates[label].append(taken / (clock() - start))
    return rates


def best(rates: Rates, kind: str) -> str:
    """Return the fastest of the contestants whose labels begin with ``kind``."""
    of_kind = [label for label in rates if label.startswith(kind)]
    return max(of_kind, key=lambda label: statistics.median(rates[label]))


def ratio(rates: Rates, label: str, other: str) -> float:
    """Return the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(rates[label], rates[other], strict=True))


def table(rates: Rates, others: Mapping[str, str]) -> list[str]:
    """Return a Markdown table with a column of ratios to each of the others.

    Args:
        rates: What was measured.
        others: Heading of the column and label of the contestant.
    """
    heads = ["", "steps/s, median", "min … max", *(f"× {head}" for head in others)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for label, each in rates.items():
        row = [label, f"{statistics.median(each):,.0f}", f"{min(each):,.0f} … {max(each):,.0f}"]
        row += [f"{ratio(rates, label, other):.2f}" for other in others.values()]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def save(path: Path, name: str, found: Mapping[str, Any], lines: list[str]) -> None:
    """Add or replace a part of a report: a JSON file, and a Markdown file beside it.

    Args:
        path: Of the JSON file.
        name: Of the part, its heading.
        found: What is kept of it.
        lines: Its Markdown.
    """
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = circumstances(*_PEER_PACKAGES)
    kept = ", ".join(f"{package} {version}" for package, version in here["versions"].items())
    machine = f"{here['machine']['cpu']}, {here['machine']['cores']} core(s)"
    origin = f"`{here['command']}`, {here['date']}, {machine}; {kept}."
    report[name] = {
        **found,
        **here,
        "markdown": [f"## {name}", "", *lines, "", origin, ""],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(line for part in report.values() for line in part["markdown"])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
