"""Results of a comparison: ratios of its rows and a Markdown table; `picture` draws them.

A row is a method at its best settings, in the format of `bench.results`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.results import Row
from bench.rounds import fastest, ratio
from bench.tables import table

FASTRL = ("fastrl-default", "fastrl-best")
VECTOR_ENVS = ("gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc")
"""Vector environments that run any Python environment, as fastrl does."""

COMPILED = ("gymnasium-native", "envpool-sync", "envpool-async")
"""Libraries with their own environments, to which the limit of the Python one does not apply."""

PEER_PACKAGES = ("stable-baselines3", "envpool")
_SHORT = {"envs_per_worker": "n", "num_env_workers": "N", "num_model_workers": "M"}


def settings_text(settings: Mapping[str, Any]) -> str:
    """Format settings in a few words; a single thread is not mentioned."""
    shown = {k: v for k, v in settings.items() if (k, v) != ("torch_threads", 1)}
    return ", ".join(f"{_SHORT.get(key, key)}={value}" for key, value in shown.items())


def best_vector_env(rows: Sequence[Row]) -> str | None:
    """Return the fastest of the vector environments that run any Python environment."""
    among = {row["method"]: row["fps"] for row in rows if row["method"] in VECTOR_ENVS}
    return fastest(among) if among else None


def ratios(rows: Sequence[Row], limits: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return the ratios of fastrl's throughput to each other one and to the limit.

    Args:
        rows: One per method.
        limits: Frames per second of the limit in each round; empty where it was not measured.
    """
    rounds: dict[str, Sequence[float]] = {row["method"]: row["fps"] for row in rows}
    others = {name: fps for name, fps in rounds.items() if name not in FASTRL}
    if (best := best_vector_env(rows)) is not None:
        others["best-vector-env"] = rounds[best]
    if limits:
        others["limit"] = limits
    return {
        name: {other: ratio(rounds[name], fps) for other, fps in others.items()}
        for name in FASTRL
        if name in rounds
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Return a heading and a table of a file, the slowest method first."""
    rows: list[Row] = sorted(found["results"], key=lambda row: row["fps_median"])
    limits = [limit["fps"] for limit in found["limits"]]
    single = next((row["fps"] for row in rows if row["method"] == "single-env"), None)
    head = ["method", "settings", "frames/s, median", "min … max"]
    head += ["× single env"] if single else []
    head += ["of the limit"] if limits else []
    lines = []
    for row in rows:
        line = [row["label"], settings_text(row["settings"]), f"{row['fps_median']:,.0f}"]
        line.append(f"{row['fps_min']:,.0f} … {row['fps_max']:,.0f}")
        if single:
            line.append(f"{ratio(row['fps'], single):.1f}")
        if limits:
            line.append("–" if row["method"] in COMPILED else f"{ratio(row['fps'], limits):.0%}")
        lines.append(line)
    return "\n".join([f"### {found['env']}\n", table(head, lines), footer(found), ""])


def footer(found: Mapping[str, Any]) -> str:
    """Return one line with the machine, policy, rounds and date of a file."""
    used = found["machine"]
    rounds = max((len(row["fps"]) for row in found["results"]), default=0)
    return (
        f"{used['cpu']}, {used['cores']} cores; policy: {found['policy']}; "
        f"medians of {rounds} interleaved rounds; {found['date']}"
    )
