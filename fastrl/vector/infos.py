"""Infos of single environments in gymnasium's vector form, gathered by those who step them.

A worker gathers the dicts of its own environments into columns, which are small to send and quick
to put together; the vector environment combines the columns of all workers. The outcome is that
of `gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Infos = dict[str, Any]
Columns = dict[str, tuple[list[int], Any]]
"""Per key the environments that have it, and their values: an array, a list, or nested columns."""

_FINAL = "final_obs"


def gather(infos: Mapping[int, Mapping[str, Any]]) -> Columns:
    """Return the infos of some environments, by their index, as columns."""
    found: dict[str, tuple[list[int], list[Any]]] = {}
    for index, info in infos.items():
        for key, value in info.items():
            column = found.get(key)
            if column is None:
                column = found[key] = ([], [])
            column[0].append(index)
            column[1].append(value)
    return {
        key: (indices, _packed(key, indices, values)) for key, (indices, values) in found.items()
    }


def combine(parts: Sequence[Columns], num_envs: int) -> Infos:
    """Return the infos of all environments in gymnasium's vector form.

    Args:
        parts: From `gather`; no environment is in two of them.
        num_envs: Number of environments: the length of every array.
    """
    infos: Infos = {}
    nested: dict[str, list[Columns]] = {}
    everyone = np.ones(num_envs, np.bool_)
    for part in parts:
        for key, (indices, values) in part.items():
            if isinstance(values, np.ndarray) and indices == _in_order(num_envs):
                # All have it: nothing to fill in, which would cost as much as a cheap step. Those
                # that end come last where their step told nothing.
                infos[f"_{key}"], infos[key] = everyone.copy(), values
                continue
            mask = infos.setdefault(f"_{key}", np.zeros(num_envs, np.bool_))
            mask[indices] = True
            if isinstance(values, dict):
                nested.setdefault(key, []).append(values)
                continue
            array = infos.get(key)
            if array is None:
                array = infos[key] = _empty(key, values, num_envs)
            _fill(array, indices, values)
    for key, columns in nested.items():
        infos[key] = combine(columns, num_envs)
    return infos


def separate(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return gymnasium's vector form as one dict per environment."""
    told: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None:
            continue
        if isinstance(values, dict):
            values = separate(values, num_envs)
        for index in np.flatnonzero(mask).tolist():
            told[index][key] = values[index]
    return told


def _packed(key: str, indices: list[int], values: list[Any]) -> Any:  # noqa: ANN401
    first = values[0]
    kind = type(first)
    if key == _FINAL:
        return values
    if _is_number(kind):
        # Where types differ, the first environment of all decides; see `combine`.
        same = len(set(map(type, values))) == 1
        return np.array(values, dtype=kind) if same else values
    if isinstance(first, np.ndarray):
        same = all(getattr(value, "shape", None) == first.shape for value in values)
        return np.array(values, dtype=first.dtype) if same else values
    if all(isinstance(value, dict) for value in values):
        return gather(dict(zip(indices, values, strict=True)))
    return values


@lru_cache(maxsize=16)
def _in_order(num_envs: int) -> list[int]:
    return list(range(num_envs))


def _is_number(kind: type) -> bool:
    return kind in (int, float, bool) or issubclass(kind, np.number)


def _empty(key: str, values: Any, num_envs: int) -> Any:  # noqa: ANN401
    if isinstance(values, np.ndarray):
        return np.zeros((num_envs, *values.shape[1:]), values.dtype)
    if key != _FINAL and _is_number(type(values[0])):
        return np.zeros(num_envs, type(values[0]))
    return np.full(num_envs, None, dtype=object)


def _fill(array: Any, indices: list[int], values: Any) -> None:  # noqa: ANN401
    if isinstance(values, np.ndarray):
        array[indices] = values
        return
    # One by one: NumPy would take a list of sequences apart.
    for index, value in zip(indices, values, strict=True):
        array[index] = value
