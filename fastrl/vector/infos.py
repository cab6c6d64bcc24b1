"""Infos of single environments in gymnasium's vector form.

Each worker gathers the infos of its own environments into columns, which are quick to send, and
the vector environment combines the columns of all workers. The result is that of
`gymnasium.vector.VectorEnv`: an array per key, and a mask ``_key`` of those that have it.

Two things differ, so that no value is lost. Numbers of several types get a dtype that can
represent all of them; gymnasium uses the dtype of the first environment. Values without a common
array, such as arrays of different lengths, are elements of an array of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.batched_env import Columns, NumberTable

Infos = dict[str, Any]
Kind = tuple[np.dtype[Any] | None, tuple[int, ...]]

_FINAL = "final_obs"
_INT64 = range(-(2**63), 2**63)
_FLOATS = frozenset({float, np.float64, np.float32})
_NUMBERS = _FLOATS | {int, bool}
_ALL = slice(None)
_VALUES, _TYPES = methodcaller("values"), partial(map, type)
_REUSABLE = (dict, list, tuple, set, np.ndarray)


def copied(value: Any) -> Any:
    """Return a copy of an info: environments may write the next one into the same objects.

    Dicts, lists, tuples, sets and arrays are copied, at every depth; other objects are not.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return set(value) if type(value) is set else value


def gather(indices: list[int], rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the infos of the environments ``indices`` as columns."""
    if not any(rows):
        return {}
    if not all(rows):
        indices = [index for index, row in zip(indices, rows, strict=True) if row]
        rows = list(filter(None, rows))
    # After a step of a simulator each call of a Python function takes a microsecond or two, so maps
    # are used instead.
    distinct = set(map(tuple, rows))
    if len(distinct) == 1:  # usual: all keys share their indices
        (names,) = distinct
        by_env = list(map(tuple, map(_VALUES, rows)))
        columns = list(zip(*by_env, strict=True))
        kinds = set(map(tuple, map(_TYPES, by_env)))
        if len(kinds) == 1:
            dtype, narrow = _dtype_of(*kinds)
            numbers = None if dtype is None else _array(chain.from_iterable(columns), dtype)
            if numbers is not None:
                return NumberTable(names, indices, numbers.reshape(len(names), -1), narrow)
        pairs = zip(names, columns, strict=True)
        return {key: (indices, _packed(key, indices, values)) for key, values in pairs}
    found: dict[str, tuple[list[int], list[Any]]] = {}
    for index, info in zip(indices, rows, strict=True):
        for key, value in info.items():
            having, values = found.setdefault(key, ([], []))
            having.append(index)
            values.append(value)
    return {key: (having, _packed(key, having, values)) for key, (having, values) in found.items()}


def combine(parts: Sequence[Columns], num_envs: int) -> Infos:
    """Return the infos of all environments in gymnasium's vector form.

    Args:
        parts: Results of `gather` for different environments.
        num_envs: Number of environments: the length of every array.
    """
    if isinstance(parts[0], NumberTable) and (joined := _joined(parts, num_envs)):
        return joined
    found: dict[str, list[tuple[list[int], Any]]] = {}
    for part in parts:
        for key, piece in part.items():
            if key in found:
                found[key].append(piece)
            else:
                found[key] = [piece]
    infos: Infos = {}
    last: list[list[int]] = []
    for key, pieces in found.items():
        having = [indices for indices, _ in pieces]
        if len(having) != len(last) or not all(map(is_, having, last)):
            last, rows = having, _rows(list(chain.from_iterable(having)), num_envs)
            mask = np.zeros(num_envs, np.bool_)
            mask[rows] = True
        infos[f"_{key}"] = mask.copy()
        first = pieces[0][1]
        if len(pieces) == 1 and type(first) is np.ndarray and rows == _ALL:
            infos[key] = first
        else:
            infos[key] = _column(key, pieces, rows, num_envs)
    return infos


def separate(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return infos in gymnasium's vector form as one dict per environment."""
    found: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None:
            continue
        if isinstance(values, dict):
            values = separate(values, num_envs)
        if mask.all():
            for info, value in zip(found, values, strict=True):
                info[key] = value
            continue
        for index in np.flatnonzero(mask).tolist():
            found[index][key] = values[index]
    return found


def _joined(parts: Sequence[Any], num_envs: int) -> Infos | None:
    """Return columns of all environments in gymnasium's vector form; None if their keys differ."""
    first = parts[0]
    for part in parts[1:]:
        if type(part) is not NumberTable or part.names != first.names:
            return None
        if part.narrow != first.narrow or part.numbers.dtype != first.numbers.dtype:
            return None
    indices, numbers = first.indices, first.numbers
    if len(parts) > 1:
        indices = [index for part in parts for index in part.indices]
    if indices != _in_order(num_envs):
        return None
    if len(parts) > 1:
        numbers = np.concatenate([part.numbers for part in parts], axis=1)
    infos: Infos = {}
    masks = _everyone(len(first.names), num_envs).copy()
    for name, row, mask in zip(first.names, numbers, masks, strict=True):
        infos[f"_{name}"], infos[name] = mask, row
    for number in first.narrow:
        infos[first.names[number]] = numbers[number].astype(np.float32)
    return infos


def _column(
    key: str, pieces: Sequence[tuple[list[int], Any]], rows: slice | list[int], num_envs: int
) -> Any:
    """Return the values of one key of all environments; ``rows`` are their indices."""
    columns = [values for _, values in pieces]
    if all(isinstance(values, dict | NumberTable) for values in columns):
        return combine(columns, num_envs)
    kinds = frozenset(chain.from_iterable(map(_kinds_of, columns)))
    dtype = None if key == _FINAL else _holding_all(kinds)
    if dtype is not None:
        found = columns[0]
        if len(columns) > 1 or type(found) is not np.ndarray:
            found = np.concatenate([np.asarray(values, dtype) for values in columns])
        if rows == _ALL:
            return found
        array: NDArray[Any] = np.zeros((num_envs, *found.shape[1:]), dtype)
        array[rows] = found
        return array
    array = np.full(num_envs, None, dtype=object)
    for indices, values in pieces:
        if isinstance(values, dict | NumberTable):
            infos = separate(combine([values], num_envs), num_envs)
            values = [infos[index] for index in indices]
        # One by one, as NumPy would unpack a list of sequences.
        for index, value in zip(indices, values, strict=True):
            array[index] = value
    return array


def _kinds_of(values: Any) -> Iterable[Kind]:
    """Return dtypes and shapes of the values of some environments; see `_kind_of`."""
    if isinstance(values, np.ndarray):
        return [(values.dtype, values.shape[1:])]
    return [(None, ())] if isinstance(values, dict | NumberTable) else map(_kind_of, values)


def _kind_of(value: Any) -> Kind:
    """Return dtype and shape of a number or an array; no dtype for anything else."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    kind = type(value)
    if not _is_number(kind) or (kind is int and value not in _INT64):
        return None, ()
    return np.dtype(kind), ()


@lru_cache(maxsize=256)
def _holding_all(kinds: frozenset[Kind]) -> np.dtype[Any] | None:
    """Return the dtype of an array of values of these dtypes and shapes, None if there is none."""
    dtypes, shapes = map(set, zip(*kinds, strict=True))
    if len(shapes) > 1 or None in dtypes:
        return None
    if len(dtypes) == 1:
        return dtypes.pop()  # type: ignore[no-any-return]
    letters = {dtype.kind for dtype in dtypes}
    can_join = letters <= set("biufc") or letters in ({"U"}, {"S"})
    return np.result_type(*dtypes) if can_join else None


def _packed(key: str, indices: list[int], values: Sequence[Any]) -> Any:
    """Return the values of one key as an array or as nested columns, else copies of them."""
    if key == _FINAL:
        return values
    types, first = set(map(type, values)), values[0]
    if len(types) == 1 and _is_number(kind := type(first)):
        array = _array(values, kind)
        return values if array is None else array
    if isinstance(first, np.ndarray):
        if len(types) == len(set(map(_kind_of, values))) == 1:
            return np.array(values, dtype=first.dtype)
    elif all(issubclass(kind, dict) for kind in types):
        return gather(indices, values)
    return values if types.isdisjoint(_REUSABLE) else list(map(copied, values))


@lru_cache(maxsize=256)
def _dtype_of(types: tuple[type, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return the dtype for numbers of these types, or None, and the indices of float32 ones."""
    narrow = tuple(number for number, kind in enumerate(types) if kind is np.float32)
    if _FLOATS.issuperset(types):
        return (np.float64, narrow) if len(narrow) < len(types) else (np.float32, ())
    alike = len(set(types)) == 1 and _is_number(types[0])
    return (types[0] if alike else None), ()


def _array(numbers: Iterable[Any], kind: Any) -> NDArray[Any] | None:
    """Return numbers as an array, None if a whole number needs more than 64 bits."""
    try:
        return np.fromiter(numbers, kind)
    except OverflowError:
        return None


def _rows(indices: list[int], num_envs: int) -> slice | list[int]:
    """Return a slice if the indices are those of all environments in order."""
    return _ALL if indices == _in_order(num_envs) else indices


@lru_cache(maxsize=64)
def _everyone(num_keys: int, num_envs: int) -> NDArray[np.bool_]:
    """Return masks to copy, which is four times as fast as making them."""
    return np.ones((num_keys, num_envs), np.bool_)


@lru_cache(maxsize=64)
def _in_order(num_envs: int) -> list[int]:
    return list(range(num_envs))


def _is_number(kind: type) -> bool:
    # Durations have units, which may differ.
    return kind in _NUMBERS or (
        issubclass(kind, np.number) and not issubclass(kind, np.timedelta64)
    )
