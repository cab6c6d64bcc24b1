"""Checks results of environments, and writes observations of single ones into rows."""

from __future__ import annotations

import warnings
from collections.abc import MutableSequence, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.envs.batched_env import Rows
from fastrl.errors import EnvError
from fastrl.spaces import at_path, flattener, leaves

_MISFITS = (TypeError, ValueError, KeyError, IndexError, RuntimeError)
"""RuntimeError is raised by tensors that need a gradient."""


class _Cast(NamedTuple):
    """The conversion of a leaf's values to rows.

    Attributes:
        limit: Dtype into which integers must fit.
        casting: NumPy's casting that needs no check.
        is_bits: Whether integers become bool.
        is_wider: Whether rows have a larger range than ``limit``.
    """

    limit: np.dtype[Any]
    casting: Any
    is_bits: bool
    is_wider: bool


class ObservationWriter:
    """Writes observations of one space into rows, and rejects invalid ones."""

    def __init__(
        self,
        space: spaces.Space[Any],
        first: int = 0,
        at: MutableSequence[int] | None = None,
    ) -> None:
        """Prepare for observations of ``space``.

        Args:
            space: Observation space of one environment.
            first: Index of the environment of row 0, for messages.
            at: Element 0 is the index of the environment whose observation was checked last, for
                callers that explain errors.

        Raises:
            SpaceError: The space is unsupported.
        """
        self._space = space
        self._first = first
        self._at: MutableSequence[int] = [0] if at is None else at
        self._leaves = tuple(leaves(space).items())
        self._dtypes = [np.dtype(leaf.dtype) for _, leaf in self._leaves]
        self._nested = isinstance(space, spaces.Dict | spaces.Tuple)
        self._flat = flattener(space)
        self._casts: dict[tuple[int, np.dtype[Any]], _Cast] = {}
        # The finite check reports infinities. `np.errstate` would take 0.5 µs per step.
        warnings.filterwarnings(
            "ignore", "overflow encountered in cast", RuntimeWarning, r"fastrl\.envs\."
        )

    def write_all(self, observations: Sequence[Any], rows: Rows) -> None:
        """Write one observation per environment.

        Args:
            observations: n observations of the space.
            rows: Per leaf ``[n, *shape]``, written; numbers are cast to the rows' dtype, into which
                integers must fit.

        Raises:
            EnvError: An observation is invalid; the error names the environment's index.
        """
        try:
            if not self._nested:
                self._write_column(0, observations, rows[0])
                return
            columns = zip(*map(self._flat, observations), strict=True)
            for number, (column, array) in enumerate(zip(columns, rows, strict=True)):
                self._write_column(number, column, array)
        except _MISFITS:
            # One at a time, to find the environment at fault; lists are accepted.
            for index, observation in enumerate(observations):
                self.write_one(index, observation, rows)

    def write_one(self, index: int, observation: Any, rows: Rows) -> None:
        """Write the observation of environment ``index`` into row ``index``.

        Raises:
            EnvError: The observation is invalid; the error names the index.
        """
        self._at[0] = self._first + index
        if not self._nested:
            rows[0][index] = self._checked(index, observation, 0, rows[0])
            return
        try:
            values = self._flat(observation)
        except _MISFITS as error:
            raise EnvError(
                f"env {self._first + index} returned an observation that is not of its space "
                f"{self._space}: {brief(observation, 80)}"
            ) from error
        for number, (value, array) in enumerate(zip(values, rows, strict=True)):
            array[index] = self._checked(index, value, number, array)

    def fitting(
        self, number: int, found: NDArray[Any], dtype: np.dtype[Any], indices: Sequence[int]
    ) -> NDArray[Any]:
        """Return a leaf of several environments' observations, after a check of its numbers.

        Args:
            number: Number of the leaf, in the order of the space.
            found: ``[k, *shape]``.
            dtype: Dtype of the rows into which it is written.
            indices: Indices of the k environments.

        Raises:
            EnvError: A number does not fit into the dtype; the error names the environment's index.
        """
        limit = self._limit(number, dtype)
        if found.dtype == limit:
            return found
        if not _holds(dtype.kind, found.dtype.kind):
            raise self._misfit(indices[0], f"of dtype {found.dtype}", found[0], number)
        if (misfits := beyond(found, limit)) is not None:
            row = int(np.argwhere(misfits)[0][0])
            problem = _does_not_fit(found[misfits][0], limit)
            raise self._misfit(indices[row], problem, found[row], number)
        return found

    def _checked(self, index: int, value: Any, number: int, array: NDArray[Any]) -> NDArray[Any]:
        try:
            found = np.asarray(value)
        except ValueError:
            raise self._misfit(index, "that is ragged", value, number) from None
        except RuntimeError as error:
            raise self._misfit(index, f"that is no array ({error})", value, number) from None
        if found.shape != array.shape[1:] or not _holds(array.dtype.kind, found.dtype.kind):
            problem = f"of shape {found.shape} and dtype {found.dtype}"
            raise self._misfit(index, problem, value, number)
        limit = self._limit(number, array.dtype)
        if found.dtype != limit and (misfits := beyond(found, limit)) is not None:
            problem = _does_not_fit(found[misfits].flat[0], limit)
            raise self._misfit(index, problem, value, number)
        return found

    def _write_column(self, number: int, values: Sequence[Any], array: NDArray[Any]) -> None:
        """Write one value of a leaf per environment; raise one of `_MISFITS` if one may not fit."""
        dtype = array.dtype
        cast = self._casts.get((number, dtype)) or self._cast(number, dtype)
        if array.ndim == 1 or not array.flags.c_contiguous:
            _copy_rows(array, cast, values)
            return
        # One call for all rows takes half the time of one per row. It would accept wrong heights
        # whose sum is right, hence the set.
        if set(map(len, values)) != {array.shape[1]}:
            raise ValueError
        flat = array.reshape(-1, *array.shape[2:])
        if cast.is_bits:
            _copy_fitting(flat, cast.limit, np.concatenate(values))
            return
        is_other = cast.is_wider and {getattr(each, "dtype", None) for each in values} != {
            cast.limit
        }
        if not is_other:
            try:
                np.concatenate(values, out=flat, casting=cast.casting)
                return
            except TypeError:
                pass
        _copy_fitting(array, cast.limit, np.asarray(values))

    def _cast(self, number: int, dtype: np.dtype[Any]) -> _Cast:
        """Return the conversion of a leaf to rows of a dtype, and cache it."""
        limit = self._limit(number, dtype)
        found = self._casts[number, dtype] = _Cast(
            limit=limit,
            # Floats may be rounded. Integers of a wider dtype are checked before they are cast.
            casting="same_kind" if dtype.kind == "f" else "safe",
            # Masks of int8 become bool, which `concatenate` rejects.
            is_bits=dtype.kind == "b" != self._dtypes[number].kind,
            is_wider=dtype != limit,
        )
        return found

    def _limit(self, number: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype for integers of a leaf: its own, if rows can hold that."""
        own = self._dtypes[number]
        if own == dtype or own.kind == "f":
            return dtype
        return own if np.can_cast(own, dtype, "safe") else dtype

    def _misfit(self, index: int, problem: str, value: object, number: int) -> EnvError:
        path, leaf = self._leaves[number]
        return EnvError(
            f"env {self._first + index} returned an observation{at_path(path)} {problem}: "
            f"{brief(value, 80)}; its space is {leaf}"
        )


def beyond(found: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_] | None:
    """Return flags of the integers that do not fit into another dtype; None if all fit.

    A cast would wrap them around; cast to bool, all numbers but 0 would become true.
    """
    if dtype.kind == "f" or np.can_cast(found.dtype, dtype, "safe") or not found.size:
        return None
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if limits[0] <= int(found.min()) and int(found.max()) <= limits[1]:
        return None
    misfits: NDArray[np.bool_] = (found < limits[0]) | (found > limits[1])
    return misfits


def number_of(reward: Any, index: int) -> float:
    """Return a reward, which may be an array of one number, as a number.

    Raises:
        EnvError: It is not a number; the error names the environment ``index``.
    """
    try:
        return float(np.asarray(reward).item())
    except (*_MISFITS, OverflowError):
        raise EnvError(
            f"env {index} returned the reward {brief(reward)}; expected a number"
        ) from None


def step_values(result: Any, who: str | int) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Return the five values of a step.

    Args:
        result: What the environment returned.
        who: Index or name of the environment, for messages.

    Raises:
        EnvError: It returned something else.
    """
    expected = "(observation, reward, terminated, truncated, info)"
    return _values(result, who, "step", expected)  # type: ignore[no-any-return]


def reset_values(result: Any, who: str | int) -> tuple[Any, dict[str, Any]]:
    """Return the two values of a reset; see `step_values`.

    Raises:
        EnvError: The environment returned something else.
    """
    return _values(result, who, "reset", "(observation, info)")  # type: ignore[no-any-return]


def _values(result: Any, who: str | int, method: str, expected: str) -> Any:
    is_sequence = isinstance(result, tuple | list)
    if is_sequence and len(result) == expected.count(",") + 1:
        return result
    env = f"env {who}" if isinstance(who, int) else who
    found = f"{len(result)} values" if is_sequence else f"a {type(result).__name__}"
    raise EnvError(
        f"{env} returned {found} from {method}(): {brief(result, 80)}; expected {expected}"
    )


def _copy_rows(array: NDArray[Any], cast: _Cast, values: Sequence[Any]) -> None:
    if array.ndim > 1:
        raise ValueError
    found = np.asarray(values)
    if not cast.is_wider or found.dtype == cast.limit:
        try:
            np.copyto(array, found, casting=cast.casting)
            return
        except TypeError:
            pass
    _copy_fitting(array, cast.limit, found)


def _copy_fitting(array: NDArray[Any], limit: np.dtype[Any], found: NDArray[Any]) -> None:
    if found.shape != array.shape or not _holds(array.dtype.kind, found.dtype.kind):
        raise ValueError
    if found.dtype != limit and beyond(found, limit) is not None:
        raise ValueError
    np.copyto(array, found, casting="unsafe")


def _holds(kind: str, found: str) -> bool:
    return found in "biuf" and (found != "f" or kind == "f")


def _does_not_fit(number: object, dtype: np.dtype[Any]) -> str:
    return f"with the number {number}, which does not fit {dtype}"
