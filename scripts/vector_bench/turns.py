"""Whether a few environments take less than their number times one: in turns of 30 ms.

On a machine whose speed jumps within seconds, measurements that come one after another say little
about ways that differ by a tenth. Here all ways of a size take short turns, each between two turns
of a single environment in a plain loop, against which it is held; and what is counted is the
processor's time of this process, which others cannot lengthen by taking the core away.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from vector_bench.measure import sample_actions
from vector_bench.methods import METHODS

WAYS = ("sequential", "gymnasium sync", "fastrl serial")
_TURN_S = 0.03


def turns(env_id: str, sizes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Return for every size and way the µs of a step, and its ratio to linear growth.

    Args:
        env_id: Which environment.
        sizes: Numbers of environments.
        seconds: How long all of it may take.
    """
    one = _stepper(env_id, "sequential", 1)
    ways = {(way, size): _stepper(env_id, way, size) for size in sizes for way in WAYS}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in ways}
    single_s, until = _turn(one), time.perf_counter() + seconds
    while time.perf_counter() < until:
        for (way, size), step in ways.items():
            before_s, took_s, single_s = single_s, _turn(step), _turn(one)
            found[way, size].append((took_s, took_s / (size * (before_s + single_s) / 2)))
    return [
        {
            "env": env_id,
            "method": way,
            "num_envs": size,
            "turns": len(each),
            "cpu_s": statistics.median(took_s for took_s, _ in each),
            "of_linear": statistics.median(ratio for _, ratio in each),
            "quartiles": statistics.quantiles((ratio for _, ratio in each), n=4)[::2],
        }
        for (way, size), each in found.items()
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the ratios as a table for each environment."""
    parts = []
    for env in dict.fromkeys(row["env"] for row in found):
        rows = [row for row in found if row["env"] == env]
        sizes = sorted({row["num_envs"] for row in rows})
        lines = [f"| {env} | " + " | ".join(map(str, sizes)) + " |"]
        lines.append("|---|" + "---:|" * len(sizes))
        for way in dict.fromkeys(row["method"] for row in rows):
            mine = {row["num_envs"]: row for row in rows if row["method"] == way}
            lines.append(f"| {way} | " + " | ".join(_cell(mine[size]) for size in sizes) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    return f"{row['of_linear']:.3f} [{low:.3f} … {high:.3f}], {1e6 * row['cpu_s']:.0f} µs"


def _stepper(env_id: str, way: str, num_envs: int) -> Callable[[int], Any]:
    envs, actions = METHODS[way](env_id, num_envs), sample_actions(env_id, num_envs)
    envs.reset()
    return lambda number: envs.step(actions[number % len(actions)])


def _turn(step: Callable[[int], Any]) -> float:
    """Return the processor's seconds of a step."""
    steps, start_s, until = 0, time.process_time(), time.perf_counter() + _TURN_S
    while time.perf_counter() < until:
        step(steps)
        steps += 1
    return (time.process_time() - start_s) / steps
