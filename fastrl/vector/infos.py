"""Infos of single environments in gymnasium's vector form, gathered by those who step them.

A worker gathers the dicts of its own environments into columns, which are small to send and quick
to put together; the vector environment combines the columns of all workers. The outcome is that
of `gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import methodcaller
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

Infos = dict[str, Any]


class InfoTable(NamedTuple):
    """Infos of environments that all tell the same, as nearly all environments do.

    Attributes:
        names: The keys.
        indices: Of the environments.
        columns: Per key the values of all environments, as in `Columns`; or one array
            ``[keys, environments]``, which is sent and joined as a whole.
        narrow: Positions of the keys whose values are float32, in an array of float64.
    """

    names: tuple[str, ...]
    indices: list[int]
    columns: Any
    narrow: tuple[int, ...] = ()

    def items(self) -> Iterator[tuple[str, tuple[list[int], Any]]]:
        """Yield what a dict of columns would."""
        for number, (name, values) in enumerate(zip(self.names, self.columns, strict=True)):
            narrowed = values.astype(np.float32) if number in self.narrow else values
            yield name, (self.indices, narrowed)


class Finished(tuple[Infos]):
    """Infos of all environments that are in gymnasium's vector form already."""

    __slots__ = ()


Columns = dict[str, tuple[list[int], Any]] | InfoTable | Finished
"""Per key the environments that have it, and their values: an array, a list, or nested columns."""

_FINAL = "final_obs"
_FLOATS = frozenset({float, np.float64, np.float32})
_NUMBERS = _FLOATS | {int, bool}
"""Looked up first: to ask a class for its base classes takes longer."""
_VALUES, _TYPES = methodcaller("values"), partial(map, type)


def gather(infos: Mapping[int, Mapping[str, Any]], num_envs: int = 0) -> Columns:
    """Return the infos of some environments, by their index, as columns.

    Args:
        infos: Of each environment that tells anything.
        num_envs: Number of environments, where there are no others than those gathered here:
            nothing is left to combine then.
    """
    if not infos:
        return {}
    indices, rows = list(infos), list(infos.values())
    # A step of a simulator leaves little of this in the caches, and every function of Python's own
    # costs a microsecond or two then: hence maps.
    keys = set(map(tuple, rows))
    if len(keys) > 1:
        return _ragged(infos)
    # No key has to be looked up, and the indices are shared.
    (names,) = keys
    columns = list(zip(*map(_VALUES, rows), strict=True))
    if len(rows) != num_envs or indices != _in_order(0, num_envs) or _FINAL in names:
        return _table(names, indices, columns)
    told: Infos = {}
    masks = _everyone(len(names), num_envs).copy()
    for name, values, mask in zip(names, columns, masks, strict=True):
        kind = type(values[0])
        told[f"_{name}"] = mask
        if kind in _NUMBERS and len(set(map(type, values))) == 1:
            told[name] = np.array(values, kind)
        else:
            told[name] = _finished_column(name, indices, values)
    return Finished((told,))


def _table(
    names: tuple[str, ...], indices: list[int], columns: Sequence[tuple[Any, ...]]
) -> InfoTable:
    """Return what environments that all tell the same tell."""
    kinds = set(map(tuple, map(_TYPES, zip(*columns, strict=True))))
    if len(kinds) == 1 and _FINAL not in names:
        (types,) = kinds
        dtype, narrow = _dtype_of(types)
        if dtype is not None:
            count = len(names) * len(indices)
            flat: NDArray[Any] = np.fromiter(chain.from_iterable(columns), dtype, count)
            return InfoTable(names, indices, flat.reshape(len(names), len(indices)), narrow)
    packed = [_packed(name, indices, values) for name, values in zip(names, columns, strict=True)]
    return InfoTable(names, indices, packed)


def combine(parts: Sequence[Columns], num_envs: int) -> Infos:
    """Return the infos of all environments in gymnasium's vector form.

    Args:
        parts: From `gather`; no environment is in two of them.
        num_envs: Number of environments: the length of every array.
    """
    first = parts[0]
    if type(first) is Finished:
        return first[0]
    if _are_whole(parts, num_envs):
        return _joined(cast("Sequence[InfoTable]", parts), num_envs)
    return _filled_in(parts, num_envs)


def _filled_in(parts: Sequence[Any], num_envs: int) -> Infos:
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
            if isinstance(values, dict | InfoTable):
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
    first, count = parts[0], 0
    for part in parts:
        if type(part) is not InfoTable or type(first) is not InfoTable:
            return False
        following = count + len(part.indices)
        if part.indices != _in_order(count, following):
            return False
        if part is not first and (part.names != first.names or part.narrow != first.narrow):
            return False
        count = following
    return count == num_envs


def _joined(parts: Sequence[InfoTable], num_envs: int) -> Infos:
    """Return whole parts in gymnasium's vector form: without filling in, which costs far more."""
    names, _, columns, narrow = parts[0]
    if len(parts) > 1 or type(columns) is not np.ndarray:
        columns = _concatenated([part.columns for part in parts], axis=1)
    if columns is None:
        columns = [
            _joined_column(name, parts, [part.columns[number] for part in parts], num_envs)
            for number, name in enumerate(names)
        ]
    infos: Infos = {}
    masks = _everyone(len(names), num_envs).copy()
    for name, values, mask in zip(names, columns, masks, strict=True):
        infos[f"_{name}"], infos[name] = mask, values
    for number in narrow:
        infos[names[number]] = columns[number].astype(np.float32)
    return infos


def _joined_column(
    name: str, parts: Sequence[InfoTable], values: Sequence[Any], num_envs: int
) -> Any:  # noqa: ANN401
    array = _concatenated(values, axis=0)
    if array is not None:
        return array
    if all(isinstance(each, dict | InfoTable) for each in values):
        return combine(values, num_envs)
    columns = [{name: (part.indices, each)} for part, each in zip(parts, values, strict=True)]
    return combine(columns, num_envs)[name]


def _finished_column(name: str, indices: list[int], values: Sequence[Any]) -> Any:  # noqa: ANN401
    packed = _packed(name, indices, values)
    if type(packed) is np.ndarray:
        return packed
    if isinstance(packed, dict | InfoTable):
        return combine((packed,), len(indices))
    array = _empty(name, packed, len(indices))
    _fill(array, indices, packed)
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


def _ragged(infos: Mapping[int, Mapping[str, Any]]) -> Columns:
    """Return infos of which some have keys that others lack."""
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


@lru_cache(maxsize=256)
def _dtype_of(types: tuple[type, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return what holds numbers of these types, None if nothing does, and which are float32."""
    narrow = tuple(number for number, kind in enumerate(types) if kind is np.float32)
    if _FLOATS.issuperset(types):
        return (np.float64, narrow) if len(narrow) < len(types) else (np.float32, ())
    alike = len(set(types)) == 1 and _is_number(types[0])
    return (types[0] if alike else None), ()


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
