"""What `bench_tensor_envs.py` writes: rows, tables and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKLOADS = {
    "step": "one environment, random actions, one step per call",
    "episode": "one environment, random actions, 200 steps per call",
    "policy_1": "one environment, 64-unit policy",
    "policy_2000": "2,000 environments, 64-unit policy",
    "random": "random actions",
    "policy": "policy of 64×64 units, sampling as in training",
}
SCALING = ("random", "policy")
"""Workloads over many numbers of environments."""
PEERS = ("gymnax", "jax", "envpool")


def row(method: str, num_envs: int, rates: Sequence[float], first_s: float) -> dict[str, Any]:
    """Return one result: steps per second over the rounds, and building, compiling and stepping."""
    median = statistics.median(rates)
    return {
        "method": method,
        "num_envs": num_envs,
        "steps_per_s_median": median,
        "steps_per_s_min": min(rates),
        "steps_per_s_max": max(rates),
        "seconds_per_million": 1e6 / median,
        "first_step_s": first_s,
    }


def line(found: dict[str, Any]) -> str:
    """Return a result as a line of progress."""
    return (
        f"{found['env']:26}{found['workload']:12}{found['num_envs']:>9,} "
        f"{found['method']:24}{found['steps_per_s_median'] / 1e6:>12.3f} M steps/s"
    )


def markdown(result: dict[str, Any]) -> str:
    """Return all tables."""
    found = result["results"]
    parts = [_about(result)]
    for workload, title in WORKLOADS.items():
        rows = [each for each in found if each["workload"] == workload]
        if rows and workload in SCALING:
            envs = dict.fromkeys(each["env"] for each in rows)
            parts += [_scaling(env, title, rows) for env in envs]
        elif rows:
            parts.append(_by_env(title, rows))
    parts.append(_first_steps(found))
    return "\n\n".join(parts) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw steps per second over the number of environments, one panel per environment."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [each for each in result["results"] if each["workload"] == "random"]
    envs = list(dict.fromkeys(each["env"] for each in rows))
    if not envs:
        return
    size = (4.2 * len(envs), 4)
    figure, panels = plt.subplots(1, len(envs), figsize=size, squeeze=False, layout="constrained")
    methods = list(dict.fromkeys(each["method"] for each in rows))
    for panel, env in zip(panels[0], envs, strict=True):
        for index, method in enumerate(methods):
            points = [e for e in rows if (e["env"], e["method"]) == (env, method)]
            sizes, rates = ([e[key] for e in points] for key in ("num_envs", "steps_per_s_median"))
            # Also where there are none, so that a method has one colour and is in every legend.
            panel.plot(sizes, rates, "o-", color=f"C{index}", label=method)
        panel.set(title=env, xscale="log", yscale="log", xlabel="environments")
        panel.set_xscale("log", base=2)
        panel.grid(visible=True, alpha=0.3)
    panels[0][0].set_ylabel("steps per second")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels))
    cpu = result["machine"]["cpu"]
    figure.suptitle(f"Random actions, {result['threads']} threads, {cpu}")
    figure.savefig(path, dpi=130)


def _about(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    gpu = machine["gpu"] or "none: those rows are not yet measured"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {result['threads']} threads; GPU: {gpu}. "
        "Medians of rounds taken in turns; in the rows that were measured last, of "
        f"{result['repeats']} of at least {result['seconds']} s: `{result['command']}`, "
        f"{result['date']}; {versions}."
    )


def _by_env(title: str, rows: list[dict[str, Any]]) -> str:
    """Return seconds per million steps, a row per environment and a column per method."""
    methods = list(dict.fromkeys(each["method"] for each in rows))
    by_key = {(each["env"], each["method"]): each for each in rows}
    lines = []
    for env in dict.fromkeys(each["env"] for each in rows):
        cells = [by_key.get((env, method)) for method in methods]
        lines.append([env, *(f"{c['seconds_per_million']:.3g}" if c else "" for c in cells)])
    return f"**Seconds per million steps: {title}**\n\n" + _table(["env", *methods], lines)


def _scaling(env: str, workload: str, rows: list[dict[str, Any]]) -> str:
    """Return millions of steps per second, a row per size and a column per method."""
    rows = [each for each in rows if each["env"] == env]
    methods = list(dict.fromkeys(each["method"] for each in rows))
    by_key = {(each["num_envs"], each["method"]): each for each in rows}
    lines = []
    for size in dict.fromkeys(each["num_envs"] for each in rows):
        cells = [by_key.get((size, method)) for method in methods]
        rates = [f"{c['steps_per_s_median'] / 1e6:.3g}" if c else "" for c in cells]
        lines.append([f"{size:,}", *rates])
    title = f"**{env}: million steps per second, {workload}**"
    return f"{title}\n\n" + _table(["environments", *methods], lines)


def _first_steps(found: list[dict[str, Any]]) -> str:
    """Return how long building, compiling and the first step took at most."""
    longest: dict[str, float] = {}
    for each in found:
        longest[each["method"]] = max(longest.get(each["method"], 0.0), each["first_step_s"])
    lines = [[method, f"{seconds:.2f}"] for method, seconds in longest.items()]
    title = "**Longest time to the first step: building, compiling and stepping**"
    return f"{title}\n\n" + _table(["method", "s"], lines)


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
