"""Fill the tables of README.md and docs/benchmarks.md from the committed results.

    python docs/write_tables.py

A page holds a table between two lines with its name, such as ``speed``. A comparison
(``compare_*.json``, of ``scripts/compare.py``) becomes a column of its machine's table. Results of
other machines lie in directories of their own below.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", DOCS / "benchmarks.md")
BEGIN = "<!-- {}: made by docs/write_tables.py from results/ -->"
END = "<!-- end of {} -->"

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
    "fastrl, single environments": ["fastrl-python"],
    "**fastrl**, default parameters": ["fastrl-default"],
    "**fastrl**, best parameters": ["fastrl-best", "fastrl-default"],
}
"""Labels and the methods of which the best is shown; rows without any figure are left out."""
_BEST = _ROWS["**fastrl**, best parameters"]
"""A short scan may have taken others for faster than the default, which the rounds tell apart."""
_SHORT_ROWS = {
    "worker processes: gymnasium or SB3": ["gymnasium-async", "sb3-subproc"],
    "one process: gymnasium or SB3": ["gymnasium-sync", "sb3-dummy"],
    "batched: gymnasium's own or EnvPool": ["gymnasium-native", "envpool-sync", "envpool-async"],
    "**fastrl**": _BEST,
}
_LEARNT = (
    *("cartpole_ppo", "cartpole_no_velocity_ppo_lstm", "halfcheetah_v4_ppo_tuned"),
    *("hopper_v4_ppo_cleanrl", "walker2d_v4_ppo_tuned", "crafter_native_ppo_tuned"),
)
"""The learning results of the README."""


def write_tables(page: Path, results: Path) -> None:
    """Replace what lies between the markers of each table that a Markdown file holds.

    Raises:
        ValueError: The page holds no table, or one has no end, or a file of results is damaged.
    """
    text = page.read_text(encoding="utf-8")
    held = [name for name in TABLES if BEGIN.format(name) in text or END.format(name) in text]
    if not held:
        raise ValueError(f"{page}: no table of {', '.join(TABLES)}")
    for name in held:
        begin, end = BEGIN.format(name), END.format(name)
        parts = re.split(f"({re.escape(begin)}|{re.escape(end)})", text)
        if [part for part in parts if part in (begin, end)] != [begin, end]:
            raise ValueError(f"{page}: the lines '{begin}' and '{end}' must be there once each")
        parts[2] = f"\n{TABLES[name](results, page.parent)}\n"
        text = "".join(parts)
    page.write_text(text, encoding="utf-8")


def throughput(results: Path, start: Path) -> str:
    """Return a table for every machine that has comparisons, the one with most of them first.

    Args:
        results: Directory of results.
        start: Directory of the page, for its links.

    Raises:
        ValueError: There are no results, or a file is damaged.
    """
    machines = _machines(results, start)
    return "\n".join(_table(machine, columns, _ROWS) for machine, columns in machines)


def speed(results: Path, start: Path) -> str:
    """Return the short form of `throughput`, for the machine with most comparisons."""
    machine, columns = _machines(results, start)[0]
    return _table(machine, columns, _SHORT_ROWS)


def learning(results: Path, start: Path) -> str:
    """Return a table of returns after training; see `throughput` for arguments and errors."""
    lines = ["| configuration | steps | return | seeds | curves |", "|---|---:|---:|---:|---|"]
    for name in _LEARNT:
        path = results / f"learning_{name}.json"
        found = _read(path, {"config", "runs", "eval_return_mean", "eval_return_std_over_seeds"})
        runs, config = found["runs"], ROOT / found["config"]
        mean = f"{found['eval_return_mean']:,.0f} ± {found['eval_return_std_over_seeds']:,.0f}"
        cells = (
            _link(config.stem, config, start),
            f"{max(run['steps'] for run in runs):,}",
            _link(mean if len(runs) > 1 else mean.partition(" ")[0], path, start),
            str(len(runs)),
            _link("curves", ROOT / "imgs" / f"{path.stem}.png", start),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


TABLES: Mapping[str, Callable[[Path, Path], str]] = {
    "throughput": throughput,
    "speed": speed,
    "learning": learning,
}


def _machines(results: Path, start: Path) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return each machine and its comparisons."""
    machines: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for path in sorted(results.rglob("compare_*.json")):
        found = _read(path, {"env", "results", "machine", "date"})
        columns = machines[name_of(found["machine"])]
        # Of two on the same machine the newer one counts.
        known = columns.get(found["env"])
        if known is None or known["date"] <= found["date"]:
            columns[found["env"]] = found | {"link": _link(found["env"], path, start)}
    if not machines:
        raise ValueError(f"{results}: there are no compare_*.json")
    ordered = sorted(machines.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(machine, list(columns.values())) for machine, columns in ordered]


def _link(text: str, path: Path, start: Path) -> str:
    return f"[{text}]({Path(os.path.relpath(path, start)).as_posix()})"


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(f"{path}: lacks one of {', '.join(sorted(keys))}")
    return found


def name_of(machine: Mapping[str, Any]) -> str:
    """Return processor, cores and GPU."""
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine['cpu']}, {machine['cores']} cores{gpu}"


def _table(
    machine: str,
    comparisons: Sequence[Mapping[str, Any]],
    methods_of: Mapping[str, Sequence[str]],
) -> str:
    columns = sorted(comparisons, key=lambda found: (_rank(found["env"]), found["env"]))
    rows = {label: [_fps(c, methods) for c in columns] for label, methods in methods_of.items()}
    rows = {label: cells for label, cells in rows.items() if set(cells) != {_NONE}}
    if methods_of is _ROWS:
        rows["best n, N, M"] = [_best(c) for c in columns]
    rows["physical limit"] = [_number(c.get("limit_fps")) for c in columns]
    rows["of which fastrl reaches"] = [_efficiency(c) for c in columns]
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


if __name__ == "__main__":
    for each in PAGES:
        write_tables(each, RESULTS)
