"""The memory through which actions reach environments and what they return comes back.

Unlike the sampler's table, which learning reads in float32, rows here have the dtypes of the spaces
and rewards are float64, so that a loop gets the same bits as from gymnasium's vector environments.
There are two banks, used in turn, so that a view holds until the second step from now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.shared.memory import SharedBlock, align
from fastrl.spaces import leaves
from fastrl.vector.spec import InstanceSpec

NUM_BANKS = 2
NO_RESET = -1
"""In `Exchange.reset_seed`: step this environment."""
UNSEEDED = -2
"""In `Exchange.reset_seed`: reset this environment without a seed."""


@dataclass(frozen=True)
class Bank:
    """What environments return; rows of all of them, or of some.

    Attributes:
        observation: Per leaf ``[B, *shape]`` in the dtype of its space.
        reward: ``[B]`` float64.
        terminated: ``[B]`` bool.
        truncated: ``[B]`` bool.
    """

    observation: tuple[NDArray[Any], ...]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    def part(self, rows: slice) -> Bank:
        """Return the views of some environments."""
        return Bank(
            tuple(leaf[rows] for leaf in self.observation),
            self.reward[rows],
            self.terminated[rows],
            self.truncated[rows],
        )


class Exchange:
    """Two banks of results, and one of actions; travels to workers as they are started.

    Args:
        spec: Says the leaves of observations and actions; there are no rows for spaces without
            arrays of fixed size.
        num_envs: B.
        shared: Whether processes share the memory.

    Attributes:
        banks: What environments return.
        action: Per action leaf ``[B, *shape]`` in the dtype of its space.
        reset_seed: ``[B]`` int64: the seed with which an environment is to be reset in its next
            step, or `NO_RESET` or `UNSEEDED`; used by ``send`` alone.
    """

    def __init__(self, spec: InstanceSpec, num_envs: int, *, shared: bool) -> None:
        rows = spec.fits_rows
        self._observation = _row_specs(spec.observation_space) if rows else []
        self._action = _row_specs(spec.action_space) if rows else []
        self.num_envs = num_envs
        size = max((offset for _, _, offset in self._layout()), default=0)
        self._block = SharedBlock(size) if shared else None
        self._local = None if shared else np.zeros(size, np.uint8)
        self._attach()
        self.reset_seed.fill(NO_RESET)

    def close(self) -> None:
        """Drop the memory's descriptor; views that are still held stay valid."""
        if self._block is not None:
            self._block.close()

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the views."""
        views = ("banks", "action", "reset_seed")
        return {name: value for name, value in vars(self).items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self._attach()

    def _layout(self) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], int]]:
        """Yield shape and dtype of every array, and where it ends."""
        flags = [((), np.dtype(np.bool_))] * 2
        bank = [*self._observation, ((), np.dtype(np.float64)), *flags]
        end = 0
        for shape, dtype in [*bank * NUM_BANKS, *self._action, ((), np.dtype(np.int64))]:
            end = align(end + self.num_envs * math.prod(shape) * dtype.itemsize)
            yield (self.num_envs, *shape), dtype, end

    def _attach(self) -> None:
        arrays: list[NDArray[Any]] = []
        start = 0
        for shape, dtype, end in self._layout():
            if self._block is not None:
                arrays.append(self._block.array(dtype, shape, start))
            else:
                arrays.append(np.ndarray(shape, dtype, buffer=self._local, offset=start))
            start = end
        per_bank, leaves_ = len(self._observation) + 3, len(self._observation)
        self.banks = [
            Bank(tuple(part[:leaves_]), *part[leaves_:])
            for part in (arrays[i * per_bank : (i + 1) * per_bank] for i in range(NUM_BANKS))
        ]
        self.action = tuple(arrays[NUM_BANKS * per_bank : -1])
        self.reset_seed: NDArray[np.int64] = arrays[-1]


def _row_specs(space: Any) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:  # noqa: ANN401
    found = leaves(space).values()
    return [(tuple(leaf.shape or ()), np.dtype(leaf.dtype)) for leaf in found]
