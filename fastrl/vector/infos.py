"""Infos of single environments in gymnasium's vector form, gathered by those who step them.

A worker gathers the dicts of its own environments into columns, which are small to send and quick
to put together; the vector environment combines the columns of all workers. The outcome is that
of `gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Infos = dict[str, Any]


class Table:
    """Infos of environments that all tell the same, as nearly all environments do.

    Attributes:
        names: The keys.
        indices: Of the environments.
        columns: Per key the values of all environments, as in `Columns`; or one array
            ``[keys, environments]``, which is sent and joined as a whole.
    """

    __slots__ = ("columns", "indices", "names")

    def __init__(self, names: tuple[str, ...], indices: list[int], columns: Any) -> None:  # noqa: ANN401
        self.names, self.indices, self.columns = names, indices, columns

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as little more than the columns."""
        return Table, (self.names, self.indices, self.columns)

    def items(self) -> Iterator[tuple[str, tuple[list[int], Any]]]:
        """Yield what a dict of columns would."""
        for name, values in zip(self.names, self.columns, strict=True):
            yield name, (self.indices, values)


Columns = dict[str, tuple[list[int], Any]] | Table
"""Per key the environments that have it, and their values: an array, a list, or nested columns."""

_FINAL = "final_obs"
_NUMBERS = frozenset({int, float, bool, np.float64, np.float32})
"""Looked up first: to ask a class for its base classes takes longer."""


def gather(infos: Mapping[int, Mapping[str, Any]]) -> Columns:
    """Return the infos of some environments, by their index, as columns."""
    if not infos:
        return {}
    indices, rows = list(infos), list(infos.values())
    names = tuple(rows[0])
    if all([tuple(row) == names for row in rows[1:]]):
        # No key has to be looked up, and the indices are shared.
        numbers = list(chain.from_iterable(zip(*[row.values() for row in rows], strict=True)))
        kinds = set(map(type, numbers))
        if len(kinds) == 1 and _is_number(kind := kinds.pop()) and _FINAL not in names:
            # One array instead of one for each key.
            flat: NDArray[Any] = np.fromiter(numbers, kind, len(numbers))
            return Table(names, indices, flat.reshape(len(names), len(rows)))
        columns = zip(*[row.values() for row in rows], strict=True)
        packed = [
            _packed(name, indices, values) for name, values in zip(names, columns, strict=True)
        ]
        return Table(names, indices, packed)
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
    if _are_whole(parts, num_envs):
        return _joined(cast("Sequence[Table]", parts), num_envs)
    infos: Infos = {}
    nested: dict[str, list[Columns]] = {}
    for part in parts:
        last: list[int] | None = None
        for key, (indices, values) in part.items():
            if indices is not last:  # keys that the same environments have share their indices
                last, rows = indices, _as_rows(indices)
            mask = infos.get(f"_{key}")
            if mask is None:
                mask = infos[f"_{key}"] = np.zeros(num_envs, np.bool_)
            mask[rows] = True
            if isinstance(values, dict | Table):
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


def _are_whole(parts: Sequence[Columns], num_envs: int) -> bool:
    """Return whether all environments tell the same, those of a part in order."""
    count = 0
    for part in parts:
        if not isinstance(part, Table) or part.names != parts[0].names:  # type: ignore[union-attr]
            return False
        following = count + len(part.indices)
        if part.indices != _in_order(count, following):
            return False
        count = following
    return count == num_envs


def _joined(parts: Sequence[Table], num_envs: int) -> Infos:
    """Return whole parts in gymnasium's vector form: without filling in, which costs far more."""
    names = parts[0].names
    columns: Any = _concatenated([part.columns for part in parts], axis=1)
    if columns is None:
        columns = [
            _joined_column(name, parts, [part.columns[number] for part in parts], num_envs)
            for number, name in enumerate(names)
        ]
    infos: Infos = {}
    masks = _everyone(len(names), num_envs).copy()
    for name, values, mask in zip(names, columns, masks, strict=True):
        infos[f"_{name}"], infos[name] = mask, values
    return infos


def _joined_column(name: str, parts: Sequence[Table], values: Sequence[Any], num_envs: int) -> Any:  # noqa: ANN401
    if all(isinstance(each, dict | Table) for each in values):
        return combine(values, num_envs)
    array = _concatenated(values, axis=0)
    if array is None:
        columns = [{name: (part.indices, each)} for part, each in zip(parts, values, strict=True)]
        array = combine(columns, num_envs)[name]
    return array


def _concatenated(arrays: Sequence[Any], axis: int) -> NDArray[Any] | None:
    """Return arrays joined; None if some are none, or if they differ in more than their length."""
    first = arrays[0]
    if type(first) is not np.ndarray:
        return None
    if len(arrays) == 1:
        return first
    for other in arrays[1:]:
        if type(other) is not np.ndarray or other.dtype != first.dtype:
            return None
        if other.ndim != first.ndim or other.shape[1 + axis :] != first.shape[1 + axis :]:
            return None
    return np.concatenate(arrays, axis)


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
