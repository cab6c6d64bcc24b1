"""What `bench_vector.py` writes: tables, and time against number of environments."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vector_bench.turns import table

OURS = ("fastrl auto", "fastrl serial", "fastrl processes", "fastrl native", "fastrl threads")
PEERS = ("gymnasium async", "SB3 subproc", "gymnasium sync")
_COLORS = {
    "sequential": "#999999",
    "gymnasium sync": "#e69f00",
    "gymnasium async": "#d55e00",
    "SB3 dummy": "#cc79a7",
    "SB3 subproc": "#8b3a62",
    "MPI": "#5b5b9b",
    "fastrl serial": "#56b4e9",
    "fastrl threads": "#009e73",
    "fastrl processes": "#0072b2",
    "fastrl native": "#000000",
    "fastrl auto": "#2ca02c",
}

Row = dict[str, Any]


def step_s(row: Row) -> float:
    """Return the median over rounds of the seconds that a step of all environments takes."""
    return statistics.median(each["step_s"] for each in row["rounds"])


def find(rows: Sequence[Row], env: str, method: str, num_envs: int) -> Row | None:
    """Return one measurement, None where it was not made."""
    wanted = (env, method, num_envs)
    return next((r for r in rows if (r["env"], r["method"], r["num_envs"]) == wanted), None)


def markdown(found: dict[str, Any]) -> str:
    """Return tables of the time of a step and of a reset, and of ratios."""
    rows: list[Row] = found["rows"]
    machine, parts = found["machine"], []
    parts.append(
        f"# Vector environments: time of a step of all environments\n\n"
        f"{machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, "
        f"{', '.join(f'{k} {v}' for k, v in found['versions'].items())}; {found['date']}. "
        "Random actions, medians over rounds in which the methods take turns; milliseconds, "
        "the spread over rounds in brackets where there are several.\n"
    )
    for env in dict.fromkeys(row["env"] for row in rows):
        sizes = sorted({row["num_envs"] for row in rows if row["env"] == env})
        methods = [m for m in _COLORS if any(find(rows, env, m, n) for n in sizes)]
        parts += [f"## {env}\n", _table(rows, env, methods, sizes, "step_s")]
        parts += ["Reset of all environments, milliseconds:\n"]
        parts += [_table(rows, env, methods, sizes, "reset_s"), _ratios(rows, env, sizes)]
    if found.get("turns"):
        parts.append(
            "## A few environments, in turns of 30 ms\n\n"
            "Processor time of a step of all environments, and what that is of linear growth: of\n"
            "as many times a step of one environment in a plain loop right before and after.\n"
            "Medians, quartiles in brackets.\n\n" + table(found["turns"])
        )
    for scene in found.get("scenes", []):
        parts.append(f"## {scene['name']}\n\n{scene['text']}\n")
    return "\n".join(parts)


def _table(
    rows: Sequence[Row], env: str, methods: Sequence[str], sizes: Sequence[int], key: str
) -> str:
    lines = ["| environments | " + " | ".join(map(str, sizes)) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for method in methods:
        cells = [_cell(find(rows, env, method, size), key) for size in sizes]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None, key: str) -> str:
    if row is None:
        return "–"
    times = sorted(1e3 * each[key] for each in row["rounds"])
    spread = f" [{times[0]:.2f} … {times[-1]:.2f}]" if len(times) > 1 else ""
    return f"{statistics.median(times):.2f}{spread}"


def _ratios(rows: Sequence[Row], env: str, sizes: Sequence[int]) -> str:
    lines = []
    for size in sizes:
        told = []
        for ours in OURS:
            mine = find(rows, env, ours, size)
            against = [(peer, find(rows, env, peer, size)) for peer in PEERS]
            ratios = [
                f"{step_s(his) / step_s(mine):.1f} × {p}" for p, his in against if mine and his
            ]
            if ratios:
                told.append(f"{ours} {', '.join(ratios)}")
        if told:
            lines.append(f"- {size} environments: " + "; ".join(told))
    return "How many times faster:\n\n" + "\n".join(lines) + "\n" if lines else ""


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw time against number of environments, with the line of linear growth."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows: list[Row] = found["rows"]
    envs = list(dict.fromkeys(row["env"] for row in rows))
    figure, axes = plt.subplots(
        2, len(envs), figsize=(4.6 * len(envs), 8.6), squeeze=False, layout="constrained"
    )
    for column, env in enumerate(envs):
        for line, (key, what) in enumerate((("step_s", "step"), ("reset_s", "reset"))):
            axis = axes[line][column]
            _draw(axis, [row for row in rows if row["env"] == env], key)
            axis.set(xscale="log", yscale="log", title=f"{env}: {what}", xlabel="environments")
            axis.set_ylabel("milliseconds for all environments")
            sizes = sorted({row["num_envs"] for row in rows if row["env"] == env})
            axis.set_xticks(sizes, map(str, sizes))
            axis.minorticks_off()
            axis.grid(True, which="major", alpha=0.3)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=6, fontsize=8)
    machine = found["machine"]
    figure.suptitle(f"{machine['cores']} cores, {machine['cpu']}, {found['date']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: Any, rows: Sequence[Row], key: str) -> None:  # noqa: ANN401
    methods = [m for m in _COLORS if any(row["method"] == m for row in rows)]
    for method in methods:
        mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["num_envs"])
        times = [1e3 * statistics.median(e[key] for e in row["rounds"]) for row in mine]
        ours = method.startswith("fastrl")
        axis.plot(
            [row["num_envs"] for row in mine],
            times,
            marker="o",
            markersize=3,
            linewidth=2 if ours else 1,
            linestyle="-" if ours else "--",
            color=_COLORS[method],
            label=method,
        )
    alone = [r for r in rows if r["method"] == "sequential" and r["num_envs"] == 1]
    if alone:
        one = 1e3 * statistics.median(each[key] for each in alone[0]["rounds"])
        sizes = sorted({row["num_envs"] for row in rows})
        linear = [one * size for size in sizes]
        axis.plot(sizes, linear, color="red", linewidth=1, linestyle=":", label="linear growth")
