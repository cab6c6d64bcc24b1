"""Learning curves of runs: their mean over seeds, and labels with the keys that differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastrl.registry import NAMESPACE

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values, ``[rows]`` each."""

_POINTS = 300
_KEYS_SHOWN = 3
_LARGEST = 1e150
_OWN_KEYS = {"seed", "run_dir", "evaluation", "checkpoint", "logging"}
"""Keys that may differ between the runs of one curve."""


def curve_of(rows: Iterable[Mapping[str, Any]], metric: str, over: str = "steps") -> Curve:
    """Return a metric of rows over another one, without the rows that lack a number."""
    found = [
        (row[over], row[metric])
        for row in rows
        if is_number(row.get(metric)) and is_number(row.get(over))
    ]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return steps, values


def mean_curve(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return steps, mean and standard deviation over curves, at steps that all of them cover."""
    if len(curves) == 1:
        steps, returns = curves[0]
        return steps, returns, np.zeros_like(returns)
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    steps = np.linspace(first, last, _POINTS) if first < last else np.array([first])
    returns = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, returns.mean(0), returns.std(0)


def curve_name(env: str, algorithm: str) -> str:
    """Return the label of a curve; fastrl's compiled environments are labelled as the originals."""
    return f"{env.removeprefix(NAMESPACE)} {algorithm.upper()}"


def shared_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration in which the runs of one curve agree, dotted."""
    return dict(leaves_of({name: tree[name] for name in tree if name not in _OWN_KEYS}))


def labels_of(names: Sequence[str], trees: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return a common title, and for each configuration a label with the keys that differ.

    Environment and algorithm are the title if all agree, else part of the labels. Of the keys
    that differ, labels name those that distinguish most configurations.

    Args:
        names: As `curve_name` returns them.
        trees: The `shared_keys` of each.
    """
    is_same = len(set(names)) == 1
    parts: list[tuple[str, ...]] = [() if is_same else (name,) for name in names]
    keys = list(differences(trees))
    chosen: list[str] = []
    while keys and len(set(parts)) < len(parts) and len(chosen) < _KEYS_SHOWN:
        best = max(keys, key=lambda key: len(set(_with(parts, trees, key))))
        finer = _with(parts, trees, best)
        if len(set(finer)) == len(set(parts)):
            break
        parts = finer
        chosen.append(best)
    lacking = ", ".join(f"{_short(trees, key)} not set" for key in chosen)
    labels = [", ".join(each) or lacking for each in parts]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, #{number}".lstrip(", ") for number, label in enumerate(labels, 1)]
    return (names[0] if is_same else ""), labels


def differences(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return the keys in which trees differ, with their values as text; None if a tree lacks it."""
    keys = dict.fromkeys(key for tree in trees for key in tree)
    values = {key: [shown(t[key]) if key in t else None for t in trees] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def leaves_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration by its dotted key."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _with(
    labels: Sequence[tuple[str, ...]], trees: Sequence[Mapping[str, Any]], key: str
) -> list[tuple[str, ...]]:
    """Return labels with one more key."""
    short = _short(trees, key)
    return [
        (*parts, f"{short}={shown(tree[key])}") if key in tree else parts
        for parts, tree in zip(labels, trees, strict=True)
    ]


def _short(trees: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the last part of a key if no other key ends with it, else the key."""
    last = key.rpartition(".")[2]
    alike = {each for tree in trees for each in tree if each.rpartition(".")[2] == last}
    return last if len(alike) == 1 else key


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number whose square, for a spread, a float can hold."""
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def shown(value: object) -> str:
    """Return a value of a configuration as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
