"""Infos of single environments in gymnasium's vector form, gathered by those who step them.

A worker gathers the dicts of its own environments into columns, which are small to send and quick
to put together; the vector environment combines the columns of all workers. The outcome is that
of `gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Infos = dict[str, Any]
Columns = dict[str, tuple[list[int], Any]]
"""Per key the environments that have it, and their values: an array, a list, or nested columns."""

_FINAL = "final_obs"
_NUMBERS = frozenset({int, float, bool, np.float64, np.float32})
"""Looked up first: to ask a class for its base classes takes longer."""


def gather(infos: Mapping[int, Mapping[str, Any]]) -> Columns:
    """Return the infos of some environments, by their index, as columns."""
    if not infos:
        return {}
    indices, rows = list(infos), list(infos.values())
    names = list(rows[0])
    if all([list(row) == names for row in rows[1:]]):
        # What nearly every environment does: no key has to be looked up, and the indices are
        # shared.
        numbers = list(chain.from_iterable(zip(*[row.values() for row in rows], strict=True)))
        kinds = set(map(type, numbers))
        if len(kinds) == 1 and _is_number(kind := kinds.pop()) and _FINAL not in names:
            # One array instead of one for each key.
            flat: NDArray[Any] = np.fromiter(numbers, kind, len(numbers))
            table = flat.reshape(len(names), len(rows))
            return {name: (indices, values) for name, values in zip(names, table, strict=True)}
        columns = zip(*[row.values() for row in rows], strict=True)
        return {
            name: (indices, _packed(name, indices, values))
            for name, values in zip(names, columns, strict=True)
        }
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
    for part in parts:
        last: list[int] | None = None
        for key, (indices, values) in part.items():
            if indices is not last:  # keys that the same environments have share their indices
                last, rows = indices, _as_rows(indices)
                are_all = type(rows) is slice and len(indices) == num_envs
                masks = iter(_everyone(len(part), num_envs).copy() if are_all else ())
            if are_all and type(values) is np.ndarray:
                # Nothing to fill in, which would cost as much as a cheap step.
                infos[f"_{key}"], infos[key] = next(masks), values
                continue
            mask = infos.get(f"_{key}")
            if mask is None:
                mask = infos[f"_{key}"] = np.zeros(num_envs, np.bool_)
            mask[rows] = True
            if isinstance(values, dict):
                nested.setdefault(key, []).append(values)
                continue
            array = infos.get(key)
            if array is None:
                array = infos[key] = _empty(key, values, num_envs)
            if isinstance(values, np.ndarray):
                array[rows] = values
            else:
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
        if mask.all():
            for info, value in zip(told, values, strict=True):
                info[key] = value
            continue
        for index in np.flatnonzero(mask).tolist():
            told[index][key] = values[index]
    return told


def _packed(key: str, indices: list[int], values: Sequence[Any]) -> Any:  # noqa: ANN401
    if key == _FINAL:
        return values
    first = values[0]
    kind = type(first)
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


def _as_rows(indices: list[int]) -> slice | list[int]:
    """Return a slice where the indices are consecutive, which NumPy fills much faster.

    Those of environments that end come last where their step told nothing.
    """
    first = indices[0]
    stop = first + len(indices)
    return slice(first, stop) if indices == _in_order(first, stop) else indices


@lru_cache(maxsize=64)
def _everyone(num_keys: int, num_envs: int) -> NDArray[np.bool_]:
    """Return masks to be copied, which takes a quarter of the time of making them."""
    return np.ones((num_keys, num_envs), np.bool_)


@lru_cache(maxsize=256)
def _in_order(first: int, stop: int) -> list[int]:
    return list(range(first, stop))


def _is_number(kind: type) -> bool:
    return kind in _NUMBERS or issubclass(kind, np.number)


def _empty(key: str, values: Any, num_envs: int) -> Any:  # noqa: ANN401
    if isinstance(values, np.ndarray):
        return np.zeros((num_envs, *values.shape[1:]), values.dtype)
    if key != _FINAL and _is_number(type(values[0])):
        return np.zeros(num_envs, type(values[0]))
    return np.full(num_envs, None, dtype=object)


def _fill(array: Any, indices: list[int], values: Sequence[Any]) -> None:  # noqa: ANN401
    # One by one: NumPy would take a list of sequences apart.
    for index, value in zip(indices, values, strict=True):
        array[index] = value
