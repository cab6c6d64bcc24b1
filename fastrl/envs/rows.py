"""Observations of single environments, written into rows of the shared table."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.envs.batched_env import Rows
from fastrl.errors import EnvError
from fastrl.spaces import flatten, leaves

_MISFITS = (TypeError, ValueError, KeyError, IndexError)


class ObservationWriter:
    """Writes observations of one space into rows, and refuses those that do not fit."""

    def __init__(
        self,
        space: spaces.Space[Any],
        first: int = 0,
        at: MutableSequence[int] | None = None,
    ) -> None:
        """Prepare for observations of ``space``.

        Args:
            space: Of one environment.
            first: What row 0 is called in messages.
            at: Its element 0 says which environment's observation was looked at last, for callers
                that explain errors.

        Raises:
            SpaceError: The space is unsupported.
        """
        self._space = space
        self._first = first
        self._at: MutableSequence[int] = [0] if at is None else at
        self._leaves = tuple(leaves(space).items())
        self._nested = isinstance(space, spaces.Dict | spaces.Tuple)

    def write_all(self, observations: Sequence[Any], rows: Rows) -> None:
        """Write one observation per environment.

        Args:
            observations: n observations of the space.
            rows: Per leaf ``[n, *shape]``, written; numbers are cast to the rows' dtype.

        Raises:
            EnvError: An observation does not fit; names the environment's index.
        """
        self.into(rows)(observations)

    def into(self, rows: Rows) -> Callable[[Sequence[Any]], None]:
        """Return `write_all` for rows that stay the same: what it asks of them is asked once."""
        column_writers = [_column_writer(array) for array in rows]
        write_column = column_writers[0]

        def write(observations: Sequence[Any]) -> None:
            try:
                if not self._nested:
                    write_column(observations)
                    return
                columns = zip(*(flatten(self._space, each) for each in observations), strict=True)
                for write_leaf, column in zip(column_writers, columns, strict=True):
                    write_leaf(column)
            except _MISFITS:
                # One at a time finds who is to blame; nobody is where an environment returns
                # lists, or wider integers than its space says.
                for index, observation in enumerate(observations):
                    self.write_one(index, observation, rows)

        return write

    def write_one(self, index: int, observation: Any, rows: Rows) -> None:  # noqa: ANN401
        """Write the observation of environment ``index`` into row ``index``.

        Raises:
            EnvError: The observation does not fit; names the index.
        """
        self._at[0] = self._first + index
        if not self._nested:
            rows[0][index] = self._checked(index, observation, 0, rows[0])
            return
        try:
            values = list(flatten(self._space, observation))
        except _MISFITS as error:
            raise EnvError(
                f"env {self._first + index} returned an observation that is not of its space "
                f"{self._space}: {_shorten(observation)}"
            ) from error
        for number, (value, array) in enumerate(zip(values, rows, strict=True)):
            array[index] = self._checked(index, value, number, array)

    def _checked(self, index: int, value: Any, number: int, array: NDArray[Any]) -> NDArray[Any]:  # noqa: ANN401
        try:
            found = np.asarray(value)
            if found.shape == array.shape[1:] and _holds(array.dtype.kind, found.dtype.kind):
                return found
            problem = f"of shape {found.shape} and dtype {found.dtype}"
        except ValueError:
            problem = "that is ragged"
        path, leaf = self._leaves[number]
        where = f" at '{path}'" if path else ""
        raise EnvError(
            f"env {self._first + index} returned an observation{where} {problem}: "
            f"{_shorten(value)}; its space is {leaf}"
        )


def number_of(reward: Any, index: int) -> float:  # noqa: ANN401
    """Return a reward, which may be an array of one number, as a number.

    Raises:
        EnvError: It is none; names the environment ``index``.
    """
    try:
        return float(np.asarray(reward).item())
    except (TypeError, ValueError, OverflowError):
        told = f"env {index} returned the reward {brief(reward)}; expected a number"
        raise EnvError(told) from None


def _column_writer(array: NDArray[Any]) -> Callable[[Sequence[Any]], None]:
    """Return what writes one value per environment into ``array [n, *shape]``."""
    if array.ndim == 1 or not array.flags.c_contiguous:
        return partial(_copy_rows, array)
    height = array.shape[1]
    flat = array.reshape(-1, *array.shape[2:])

    def write(values: Sequence[Any]) -> None:
        # One call for all rows costs half as much as a row at a time. It would let pass two wrong
        # heights that even out, hence the set.
        if set(map(len, values)) != {height}:
            raise ValueError
        np.concatenate(values, out=flat, casting="same_kind")

    return write


def _copy_rows(array: NDArray[Any], values: Sequence[Any]) -> None:
    if array.ndim > 1:
        raise ValueError
    np.copyto(array, np.asarray(values), casting="same_kind")


def _holds(kind: str, found: str) -> bool:
    return found in "biuf" and (found != "f" or kind == "f")


def _shorten(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
