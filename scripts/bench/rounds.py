"""Measure contestants in turn, so that a drift of the machine's speed affects all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

Steps = Callable[[], int]
"""Function that takes some steps and returns how many."""
Rates = Mapping[str, Sequence[float]]
"""Rate of each round, by contestant."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    turns: Mapping[Key, Callable[[], Value]],
    rounds: int,
    seed: int = 0,
    after_round: Callable[[int], None] = lambda index: None,
) -> dict[Key, list[Value]]:
    """Take every turn once per round, in a new random order each time.

    Args:
        turns: Functions that measure one contestant once, by name.
        rounds: Number of rounds.
        seed: Seed of the order.
        after_round: Called with the index of each round.
    """
    found: dict[Key, list[Value]] = {key: [] for key in turns}
    shuffled = random.Random(seed)
    for index in range(rounds):
        for key in shuffled.sample([*turns], len(turns)):
            found[key].append(turns[key]())
        after_round(index)
    return found


def rate(steps: Steps, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the steps per second of a window.

    Args:
        steps: Function that takes steps; called until the window is over, at least once.
        seconds: Length of the window in wall time.
        clock: Clock that measures the time of the steps.
    """
    start, until = clock(), time.perf_counter() + seconds
    taken = steps()
    while time.perf_counter() < until:
        taken += steps()
    return taken / (clock() - start)


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the rounds of the ratio within a round.

    Two windows of one round share most of the drift of the machine's speed.
    """
    return median(a / b for a, b in zip(values, others, strict=True))


def fastest(rates: Rates, kind: str = "") -> str:
    """Return the contestant with the highest median among those whose name begins with ``kind``."""
    of_kind = [name for name in rates if name.startswith(kind)]
    return max(of_kind, key=lambda name: median(rates[name]))
