"""The memory of actions and results, which is shared between the caller and the workers.

Unlike in the sampler's table (`fastrl.shared.table`), rows have the dtypes of the spaces
and rewards are float64, so that results have the same bits as gymnasium's vector environments.
Two banks are used in turn, so that a view is valid until the step after next. Actions are
checked as a whole before any environment is stepped, then split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from fastrl.envs.actions import stored_leaves
from fastrl.envs.batched_env import Rows, StepViews, part_of
from fastrl.errors import ArgumentError, one_line
from fastrl.shared.memory import Shared, SharedArrays
from fastrl.shared.table import NUM_BANKS
from fastrl.spaces import leaves, nested
from fastrl.vector.vector_plan import InstanceSpec

NO_RESET = -1
"""Value of `Exchange.reset_seed`: step this environment."""
UNSEEDED = -2
"""Value of `Exchange.reset_seed`: reset this environment without a seed."""

_MISFITS = (TypeError, KeyError, ValueError, IndexError)
_OBJECT = np.dtype(object)


class Exchange(Shared):
    """Two banks of results, and one of actions; sent to workers when they are started.

    Args:
        spec: Spaces of observations and actions. If they are no arrays of fixed size, rows contain
            Python objects, and each process has its own.
        num_envs: B.
        shared: Whether processes share the memory.

    Attributes:
        banks: Results of environments: ``reward`` is float64, ``final_observation`` is empty, and
            ``action`` is the same in both.
        action: Per action leaf ``[B, *shape]`` in the dtype of its space.
        reset_seed: ``[B]`` int64: seed with which an environment must be reset in its next step, or
            `NO_RESET` or `UNSEEDED`; used only by ``send``.
        fits_rows: Whether observations and actions are arrays of fixed size.
    """

    def __init__(self, spec: InstanceSpec, num_envs: int, *, shared: bool) -> None:
        self.num_envs, self.fits_rows = num_envs, spec.fits_rows
        observation = self._arrays(spec.observation_space)
        flag, reward = ((num_envs,), np.bool_), ((num_envs,), np.float64)
        bank = [*observation, reward, flag, flag]
        action, seed = self._arrays(spec.action_space), ((num_envs,), np.int64)
        self._bank_size = len(bank)
        self._rows = SharedArrays([*bank * NUM_BANKS, *action, seed], shared=shared)
        self._share()
        self.reset_seed.fill(NO_RESET)

    def _arrays(self, space: spaces.Space[Any]) -> list[tuple[tuple[int, ...], Any]]:
        """Return shape and dtype of the rows of a space, of objects without `fits_rows`."""
        if not self.fits_rows:
            return [((self.num_envs,), _OBJECT)]
        return [
            ((self.num_envs, *(leaf.shape or ())), leaf.dtype) for leaf in leaves(space).values()
        ]

    def _attach(self) -> None:
        arrays, size = self._rows.arrays.copy(), self._bank_size
        if not self.fits_rows:  # objects are copied before they are returned, so one bank is enough
            arrays[size] = arrays[0]
        self.action = tuple(arrays[NUM_BANKS * size : -1])
        self.reset_seed: NDArray[np.int64] = arrays[-1]
        self.banks = [
            StepViews(self.action, tuple(part[:-3]), part[-3], part[-2], part[-1], ())
            for part in (arrays[bank * size : (bank + 1) * size] for bank in range(NUM_BANKS))
        ]


class ActionRows:
    """Writes batches of actions into rows; rejects invalid ones.

    Args:
        space: Space of one action.
        exchange: Memory of the rows.
    """

    def __init__(self, space: spaces.Space[Any], exchange: Exchange) -> None:
        self._space, self._rows = space, exchange.action
        self._objects = not exchange.fits_rows
        self._leaves = {} if self._objects else leaves(space)
        self._batched = batch_space(space, exchange.num_envs)
        self._only = self._rows[0] if list(self._leaves) == [""] else None

    def write(self, actions: Any) -> None:
        """Write the actions of all environments.

        Args:
            actions: A sample of the batched action space; arrays, lists, or tensors of torch on
                any device.

        Raises:
            ArgumentError: The shape or dtype is wrong; no environment was stepped.
        """
        only = self._only
        if (
            only is not None
            and type(actions) is np.ndarray
            and actions.shape == only.shape
            and actions.dtype == only.dtype
        ):
            # The usual case needs no further checks.
            only[...] = actions
            return
        if self._objects:
            self._rows[0][:] = array_of_objects(self._iterated(actions))
            return
        values = stored_leaves(self._space, self._leaves, actions, (len(self._rows[0]),))
        for row, value in zip(self._rows, values, strict=True):
            row[...] = value

    def write_some(self, actions: Any, indices: NDArray[np.intp]) -> None:
        """Write the actions of some environments: ``[len(indices), *shape]`` per leaf.

        Raises:
            ArgumentError: The shape or dtype is wrong; no environment was stepped.
        """
        values = stored_leaves(self._space, self._leaves, actions, (len(indices),))
        for row, value in zip(self._rows, values, strict=True):
            row[indices] = value

    def of(self, index: int) -> Any:
        """Return the latest action of one environment."""
        return splitter(self._space, part_of(self._rows, slice(index, index + 1)))()[0]

    def _iterated(self, actions: Any) -> list[Any]:
        try:
            found = list(iterate(self._batched, actions))
        except _MISFITS:  # of empty spaces as well
            raise ArgumentError(
                f"actions do not have the form of {self._batched}: {one_line(actions)}"
            ) from None
        if len(found) != len(self._rows[0]):
            raise ArgumentError(f"got {len(found)} actions for {len(self._rows[0])} environments")
        return found


def array_of_objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return any values as an array of objects; NumPy would unpack a list of sequences."""
    found = np.empty(len(values), _OBJECT)
    for index, value in enumerate(values):
        found[index] = value
    return found


def splitter(space: spaces.Space[Any], rows: Rows) -> Callable[[], list[Any]]:
    """Return a function that reads one action per environment from ``rows``.

    Actions are copies, as environments may keep them.
    """
    first = rows[0]
    if first.dtype == _OBJECT or isinstance(space, spaces.Discrete):
        return lambda: list(first)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return lambda: list(first.copy())

    def split() -> list[Any]:
        columns = [list(row.copy()) for row in rows]
        return [nested(space, parts) for parts in zip(*columns, strict=True)]

    return split
