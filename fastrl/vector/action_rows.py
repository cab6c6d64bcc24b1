"""Actions of all environments: checked as a whole before any is stepped, then handed out singly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from fastrl.envs.rows import beyond
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.vector.failures import ArgumentError, brief
from fastrl.vector.spec import InstanceSpec

Rows = tuple[NDArray[Any], ...]


class ActionRows:
    """Writes batches of actions into rows; refuses those that do not fit."""

    def __init__(self, spec: InstanceSpec, rows: Rows) -> None:
        self._space = spec.action_space
        self._rows = rows
        self._paths = tuple(leaves(spec.action_space))
        self._whole = [(array, array.shape) for array in rows]
        self._single = not isinstance(self._space, spaces.Dict | spaces.Tuple)

    def write(self, actions: Any) -> None:  # noqa: ANN401
        """Write the actions of all environments.

        Args:
            actions: A sample of the batched action space; arrays, lists, or tensors of torch on
                any device.

        Raises:
            ArgumentError: Shape or kind are wrong; nothing has been stepped.
        """
        if self._single and type(actions) is np.ndarray and len(self._rows) == 1:
            # What nearly every loop does, without a detour.
            row = self._rows[0]
            if actions.shape == row.shape and actions.dtype == row.dtype:
                row[...] = actions
                return
        values = self._checked(actions, len(self._rows[0]))
        for row, value in zip(self._rows, values, strict=True):
            row[...] = value

    def write_some(self, actions: Any, indices: NDArray[np.intp]) -> None:  # noqa: ANN401
        """Write the actions of some environments: ``[len(indices), *shape]`` per leaf.

        Raises:
            ArgumentError: Shape or kind are wrong; nothing has been stepped.
        """
        for row, value in zip(self._rows, self._checked(actions, len(indices)), strict=True):
            row[indices] = value

    def of(self, index: int) -> Any:  # noqa: ANN401
        """Return the latest action of one environment."""
        by_path = {path: row[index] for path, row in zip(self._paths, self._rows, strict=True)}
        return unflatten(self._space, by_path)

    def _checked(self, actions: Any, count: int) -> list[NDArray[Any]]:  # noqa: ANN401
        try:
            values = list(flatten(self._space, actions))
        except (TypeError, KeyError, ValueError, IndexError):
            raise ArgumentError(
                f"actions do not have the form of {self._space}: {brief(actions)}"
            ) from None
        checked = []
        for path, value, row in zip(self._paths, values, self._rows, strict=True):
            found, wanted = _as_array(value), (count, *row.shape[1:])
            where = f" at '{path}'" if path else ""
            if found.shape != wanted:
                raise ArgumentError(
                    f"actions{where} have the shape {found.shape}; expected {wanted}: one for each "
                    f"of {count} environments"
                )
            if not np.can_cast(found.dtype, row.dtype, "same_kind"):
                raise ArgumentError(
                    f"actions{where} are of dtype {found.dtype}; expected {row.dtype} for "
                    f"{leaves(self._space)[path]}"
                )
            if (misfits := beyond(found, row.dtype)) is not None:
                raise ArgumentError(
                    f"actions{where} hold the number {found[misfits].flat[0]}, which does not fit "
                    f"{row.dtype}, the dtype of {leaves(self._space)[path]}"
                )
            checked.append(found)
        return checked


class ActionObjects:
    """Keeps actions of spaces without arrays of fixed size, one object per environment."""

    def __init__(self, spec: InstanceSpec, num_envs: int) -> None:
        self._batched = batch_space(spec.action_space, num_envs)
        self._num_envs = num_envs
        self.actions: list[Any] = [None] * num_envs

    def write(self, actions: Any) -> None:  # noqa: ANN401
        """Keep the actions of all environments.

        Raises:
            ArgumentError: There is not one per environment, or they are not of the space.
        """
        try:
            found = list(iterate(self._batched, actions))
        except (TypeError, KeyError, ValueError, IndexError):  # of empty spaces as well
            raise ArgumentError(
                f"actions do not have the form of {self._batched}: {brief(actions)}"
            ) from None
        if len(found) != self._num_envs:
            raise ArgumentError(f"got {len(found)} actions for {self._num_envs} environments")
        self.actions[:] = found

    def write_some(self, actions: Any, indices: NDArray[np.intp]) -> None:  # noqa: ANN401
        """Refuse: objects travel all together.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("send: actions of this space are no arrays of fixed size")

    def of(self, index: int) -> Any:  # noqa: ANN401
        """Return the latest action of one environment."""
        return self.actions[index]


def splitter(space: spaces.Space[Any], rows: Rows) -> Callable[[], list[Any]]:
    """Return a function that gives one action per environment, read from ``rows``.

    They are copies: environments may keep the action they were given.
    """
    if isinstance(space, spaces.Discrete):
        (scalars,) = rows
        return lambda: list(scalars)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        (arrays,) = rows
        return lambda: list(arrays.copy())
    paths = tuple(leaves(space))

    def split() -> list[Any]:
        columns = [list(row.copy()) for row in rows]
        return [
            unflatten(space, dict(zip(paths, parts, strict=True)))
            for parts in zip(*columns, strict=True)
        ]

    return split


def single_action(space: spaces.Space[Any], rows: Rows, index: int) -> Any:  # noqa: ANN401
    """Return a copy of the action of one environment."""
    found = [row[index] if row.ndim == 1 else row[index].copy() for row in rows]
    return unflatten(space, dict(zip(leaves(space), found, strict=True)))


def _as_array(value: Any) -> NDArray[Any]:  # noqa: ANN401
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:
        raise ArgumentError(f"actions are ragged: {brief(value)}") from None
