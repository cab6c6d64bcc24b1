"""Tables of the README, made from committed results; nothing is typed by hand.

A comparison (``compare_*.json``, of ``scripts/compare.py``) becomes a column of its machine's
table. Results of other machines lie in directories of their own below.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrl.errors import ConfigError

BEGIN = "<!-- throughput: made by scripts/report.py from results/ -->"
END = "<!-- end of throughput -->"

_ENVS = ("CartPole", "HalfCheetah", "Crafter", "Breakout")
_NONE = "–"
_ROWS = {
    "single environment": ["single-env"],
    "Sample Factory": ["sample-factory"],
    "gymnasium AsyncVectorEnv": ["gymnasium-async"],
    "SB3 SubprocVecEnv": ["sb3-subproc"],
    "SB3 DummyVecEnv": ["sb3-dummy"],
    "gymnasium SyncVectorEnv": ["gymnasium-sync"],
    "gymnasium's own batched environment": ["gymnasium-native"],
    "EnvPool (C++ environments), better of sync and async": ["envpool-sync", "envpool-async"],
    "fastrl, Python environment": ["fastrl-python"],
    "**fastrl**, default parameters": ["fastrl-default"],
    "**fastrl**, best parameters": ["fastrl-best", "fastrl-default"],
}
"""Labels and the methods of which the best is shown; rows without any figure are left out."""
_BEST = _ROWS["**fastrl**, best parameters"]
"""A short scan may have taken others for faster than the default, which the rounds tell apart."""


def write_tables(readme: Path, results: Path) -> None:
    """Replace what lies between the markers of a Markdown file.

    Args:
        readme: The file.
        results: The directory of results.

    Raises:
        ConfigError: A file cannot be read, or the markers are not there once.
    """
    try:
        with readme.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{readme} cannot be read: {error.strerror}") from error
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if [part for part in parts if part in (BEGIN, END)] != [BEGIN, END]:
        raise ConfigError(f"{readme}: the lines '{BEGIN}' and '{END}' must be there once each")
    newline = "\r\n" if "\r\n" in text else "\n"
    parts[2] = f"\n{tables(results)}\n".replace("\n", newline)
    readme.write_text("".join(parts), encoding="utf-8", newline="")


def tables(results: Path) -> str:
    """Return a Markdown table for every machine that has results, the one with most of them first.

    Raises:
        ConfigError: There are no results, or a file is damaged.
    """
    machines: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for found in _comparisons(results):
        columns = machines[_machine(found["machine"])]
        # Of two on the same machine the newer one counts.
        known = columns.get(found["env"])
        if known is None or known["date"] <= found["date"]:
            columns[found["env"]] = found
    if not machines:
        raise ConfigError(f"{results}: there are no compare_*.json")
    ordered = sorted(machines.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(_table(machine, list(columns.values())) for machine, columns in ordered)


def _comparisons(results: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for path in sorted(results.rglob("compare_*.json")):
        try:
            comparison = json.loads(path.read_text(encoding="utf-8"))
            keys = {"env", "results", "machine", "date"}
            if not isinstance(comparison, dict) or not keys <= comparison.keys():
                raise ValueError("is no comparison")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error
        link = f"[{comparison['env']}]({path.relative_to(results.parent).as_posix()})"
        found.append(comparison | {"link": link})
    return found


def _machine(machine: Mapping[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine['cpu']}, {machine['cores']} cores{gpu}"


def _table(machine: str, comparisons: Sequence[Mapping[str, Any]]) -> str:
    columns = sorted(comparisons, key=lambda found: (_rank(found["env"]), found["env"]))
    rows = {label: [_fps(c, methods) for c in columns] for label, methods in _ROWS.items()}
    rows = {label: cells for label, cells in rows.items() if set(cells) != {_NONE}}
    rows |= {
        "best n, N, M": [_best(c) for c in columns],
        "physical limit": [_number(c.get("limit_fps")) for c in columns],
        "of which fastrl reaches": [_efficiency(c) for c in columns],
    }
    dates = sorted({c["date"] for c in columns})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} … {dates[-1]}"
    lines = [
        f"{machine}; {when}; frames per second, medians of interleaved rounds:",
        "",
        f"| | {' | '.join(c['link'] for c in columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()),
        "",
    ]
    return "\n".join(lines)


def _rank(env: str) -> int:
    return next((i for i, name in enumerate(_ENVS) if name in env), len(_ENVS))


def _result(comparison: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    return next((r for r in comparison["results"] if r["method"] == method), {})


def _fastest(comparison: Mapping[str, Any], methods: Sequence[str]) -> Mapping[str, Any]:
    found = [_result(comparison, method) for method in methods]
    return max(found, key=lambda result: result.get("fps_median", 0.0))


def _fps(comparison: Mapping[str, Any], methods: Sequence[str]) -> str:
    """Return the highest of the methods' medians."""
    return _number(_fastest(comparison, methods).get("fps_median"))


def _best(comparison: Mapping[str, Any]) -> str:
    settings = _fastest(comparison, _BEST).get("settings", {})
    keys = (("n", "envs_per_worker"), ("N", "num_env_workers"), ("M", "num_model_workers"))
    values = [settings.get(short, settings.get(long)) for short, long in keys]
    return _NONE if None in values else ", ".join(map(str, values))


def _efficiency(comparison: Mapping[str, Any]) -> str:
    method = _fastest(comparison, _BEST).get("method")
    share = comparison.get("ratios", {}).get(method, {}).get("limit")
    return _NONE if share is None else f"{share:.0%}"


def _number(fps: float | None) -> str:
    return _NONE if fps is None else f"{fps:,.0f}"
