"""Infos of single environments in gymnasium's vector form, gathered by those who step them.

A worker gathers the dicts of its own environments into columns, which are small to send and quick
to put together; the vector environment combines the columns of all workers. The outcome is that
of `gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.

Two things differ, so that no value is cut off. Where gymnasium takes the dtype of the first
environment, numbers of several types here get the dtype that holds them all. Values that fit no
common array, such as arrays of different lengths, are elements of an array of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import methodcaller
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.info_table import InfoTable

Infos = dict[str, Any]


class Finished(tuple[Infos]):
    """Infos of all environments that are in gymnasium's vector form already."""

    __slots__ = ()


Columns = dict[str, tuple[list[int], Any]] | InfoTable | Finished
"""Per key the environments that have it, and their values: an array, a list, or nested columns."""

Piece = tuple[slice | list[int], list[int], Any]
"""Environments as rows and as indices, and their values of one key, as in `Columns`."""

_FINAL = "final_obs"
_INT64 = range(-(2**63), 2**63)
_FLOATS = frozenset({float, np.float64, np.float32})
_NUMBERS = _FLOATS | {int, bool}
"""Looked up first: to ask a class for its base classes takes longer."""
_VALUES, _TYPES = methodcaller("values"), partial(map, type)
_REUSABLE = (dict, list, tuple, set, np.ndarray)


def kept(value: Any) -> Any:  # noqa: ANN401
    """Return an info as it is now: environments may write the next one into the same objects.

    Dicts, lists, tuples, sets and arrays are copied, at every depth; other objects are not.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: kept(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(kept, value))
    return set(value) if type(value) is set else value


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
        alike = kind in _NUMBERS and len(set(map(type, values))) == 1
        array = _array(values, kind) if alike else None
        if array is None:
            array = _packed(name, indices, values)
            if type(array) is not np.ndarray:
                array = _column(name, [(slice(None), indices, array)], num_envs)
        told[name] = array
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
            flat = _array(chain.from_iterable(columns), dtype, len(names) * len(indices))
            if flat is not None:
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
    found: dict[str, list[Piece]] = {}
    for part in parts:
        last: list[int] | None = None
        for key, (indices, values) in part.items():
            if indices is not last:  # keys that the same environments have share their indices
                last, rows = indices, _as_rows(indices)
            found.setdefault(key, []).append((rows, indices, values))
    infos: Infos = {}
    for key, pieces in found.items():
        mask = infos[f"_{key}"] = np.zeros(num_envs, np.bool_)
        for rows, _, _ in pieces:
            mask[rows] = True
        infos[key] = _column(key, pieces, num_envs)
    return infos


def _column(key: str, pieces: Sequence[Piece], num_envs: int) -> Any:  # noqa: ANN401
    """Return the values of one key, of all environments."""
    columns = [values for _, _, values in pieces]
    if all(isinstance(values, dict | InfoTable) for values in columns):
        return combine(columns, num_envs)
    common = None if key == _FINAL else _common(columns)
    if common is not None:
        dtype, shape = common
        array: NDArray[Any] = np.zeros((num_envs, *shape), dtype)
        for rows, _, values in pieces:
            array[rows] = values
        return array
    array = np.full(num_envs, None, dtype=object)
    for _, indices, values in pieces:
        if isinstance(values, dict | InfoTable):
            infos = separate(combine([values], num_envs), num_envs)
            values = [infos[index] for index in indices]
        # One by one: NumPy would take a list of sequences apart.
        for index, value in zip(indices, values, strict=True):
            array[index] = value
    return array


def _common(columns: Sequence[Any]) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Return dtype and shape of an array that holds every value, None where there is none."""
    first = columns[0]
    if len(columns) == 1 and type(first) is np.ndarray:
        return first.dtype, first.shape[1:]
    kinds: set[Any] = set()
    for values in columns:
        if isinstance(values, np.ndarray):
            kinds.add((values.dtype, values.shape[1:]))
        elif isinstance(values, dict | InfoTable) or not _are_arrays(values):
            return None
        else:
            kinds.update(map(_kind_of, values))
    dtypes, shapes = zip(*kinds, strict=True)
    dtype = _holding_all(frozenset(dtypes))
    return (dtype, shapes[0]) if dtype is not None and len(set(shapes)) == 1 else None


def _are_arrays(values: Sequence[Any]) -> bool:
    """Return whether all are arrays, or numbers of at most 64 bits."""
    kinds = set(map(type, values))
    if not all(_is_number(kind) or issubclass(kind, np.ndarray) for kind in kinds):
        return False
    return int not in kinds or all(type(each) is not int or each in _INT64 for each in values)


def _kind_of(value: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    return np.dtype(type(value)), ()


@lru_cache(maxsize=256)
def _holding_all(dtypes: frozenset[np.dtype[Any]]) -> np.dtype[Any] | None:
    """Return the dtype that holds numbers of several, None where there is none."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    kinds = {dtype.kind for dtype in dtypes}
    if kinds <= set("biufc") or kinds in ({"U"}, {"S"}):
        return np.result_type(*dtypes)
    return None


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
    indices = [part.indices for part in parts]
    pieces = list(zip(map(_as_rows, indices), indices, values, strict=True))
    return _column(name, pieces, num_envs)


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
    kinds = set(map(type, values))
    first = values[0]
    if len(kinds) == 1 and _is_number(kind := type(first)):
        array = _array(values, kind)
        if array is not None:
            return array
    elif isinstance(first, np.ndarray):
        dtype, shape = first.dtype, first.shape
        if len(kinds) == 1 and all(v.dtype == dtype and v.shape == shape for v in values):
            return np.array(values, dtype=dtype)
    elif all(issubclass(kind, dict) for kind in kinds):
        return gather(dict(zip(indices, values, strict=True)))
    return values if kinds.isdisjoint(_REUSABLE) else list(map(kept, values))


def _array(numbers: Iterable[Any], dtype: Any, count: int = -1) -> NDArray[Any] | None:  # noqa: ANN401
    """Return numbers as an array, None where a whole number needs more than 64 bits."""
    try:
        return np.fromiter(numbers, dtype, count)
    except OverflowError:
        return None


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
    # Durations have units, which may differ.
    return kind in _NUMBERS or (
        issubclass(kind, np.number) and not issubclass(kind, np.timedelta64)
    )
