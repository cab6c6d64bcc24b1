"""Loops over environments, compiled: one call steps all of them and begins their next episodes.

Quantities are stored one after the other, ``state[quantity, env] float32``, so that the loops of
`_advance` and `_observe` become vector instructions. What an environment gets never depends on its
neighbours.

`step` and `begin` are written once. What differs between tasks is chosen by the class of their
first argument; the compiler makes a version for each that is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import int32, types, uint64
from numba.extending import overload
from numpy.typing import NDArray

from fastrl.compiled import cached_kernel
from fastrl.envs.classic_control.kernel_parts import OPTIONS, compiled, move_on
from fastrl.envs.classic_control.kernel_tasks import (
    ACROBOT,
    CARTPOLE,
    MOUNTAIN_CAR,
    MOUNTAIN_CAR_CONTINUOUS,
    PENDULUM,
    Batch,
    Views,
)

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_BLOCK = 512
"""Environments that pass through all loops before the next do: few enough for the L1 cache."""


_FIELDS = [(name, Any) for name in Batch._fields]
AcrobotBatch = NamedTuple("AcrobotBatch", _FIELDS)  # type: ignore[misc]
CartPoleBatch = NamedTuple("CartPoleBatch", _FIELDS)  # type: ignore[misc]
MountainCarBatch = NamedTuple("MountainCarBatch", _FIELDS)  # type: ignore[misc]
MountainCarContinuousBatch = NamedTuple("MountainCarContinuousBatch", _FIELDS)  # type: ignore[misc]
PendulumBatch = NamedTuple("PendulumBatch", _FIELDS)  # type: ignore[misc]

BATCHES = {
    "Acrobot-v1": AcrobotBatch,
    "CartPole-v1": CartPoleBatch,
    "MountainCar-v0": MountainCarBatch,
    "MountainCarContinuous-v0": MountainCarContinuousBatch,
    "Pendulum-v1": PendulumBatch,
}
"""The class of each id's batches."""


@compiled
def _begin(batch: Batch, env: int) -> None:
    _initialize(batch, env)
    move_on(batch.noise, env, batch.noise_size)
    batch.time[env] = 0


@compiled
def _end(batch: Batch, views: Views, restart: bool, first: int, last: int) -> int:
    """Write final observations, and begin the next episodes if asked to; return how many ended."""
    # Listed without a branch first: which episodes end, no processor can predict.
    ended = np.empty(_BLOCK, np.int32)
    count = 0
    for env in range(first, last):
        ended[count] = env
        count += int(views.terminated[env] | views.truncated[env])
    for env in ended[:count]:
        _observe(batch, views.final_observation, env, env + 1)
        if restart:
            _begin(batch, env)
    return count


@compiled
def _let_time_pass(batch: Batch, views: Views, first: int, last: int) -> bool:
    """Mark the episodes whose time is up, and return whether any episode ended."""
    time, terminated = batch.time[first:last], views.terminated[first:last]
    truncated = views.truncated[first:last]
    limit = int32(batch.time_limit)
    ended = int32(0)
    for env in range(time.size):
        now = time[env] + int32(1)
        time[env] = now
        late = (now >= limit) & (not terminated[env])
        truncated[env] = late
        ended += int32(late | terminated[env])
    return bool(ended > 0)


def _advance(batch: Batch, views: Views, first: int, last: int) -> None:
    """Move environments first to last on by one step; write reward and ``terminated``."""


def _observe(batch: Batch, target: NDArray[np.float32], first: int, last: int) -> None:
    """Write the observations of environments first to last."""


def _initialize(batch: Batch, env: int) -> None:
    """Put an environment into the first state of an episode."""


@overload(_advance, strict=False)
def _advance_of(batch: types.NamedTuple, views: Views, first: Any, last: Any) -> Any:  # noqa: ANN401
    return _OF_BATCH[batch.instance_class].advance


@overload(_observe, strict=False)
def _observe_of(batch: types.NamedTuple, target: NDArray[np.float32], first: Any, last: Any) -> Any:  # noqa: ANN401
    return _OF_BATCH[batch.instance_class].observe


@overload(_initialize, strict=False)
def _initialize_of(batch: types.NamedTuple, env: Any) -> Any:  # noqa: ANN401
    return _OF_BATCH[batch.instance_class].initialize


@cached_kernel(_SOURCES, **OPTIONS)
def step(digest: int) -> Callable[[Batch, Views, bool], int]:
    """Return the kernel that steps n environments."""

    def step(batch: Batch, views: Views, restart: bool) -> int:
        """Step n environments; return how many episodes ended.

        Args:
            batch: The environments.
            views: What is read and written.
            restart: Whether an episode that ends is followed by the next at once.
        """
        _ = digest
        total = 0
        for first in range(0, batch.time.size, _BLOCK):
            last = min(first + _BLOCK, batch.time.size)
            _advance(batch, views, first, last)
            if _let_time_pass(batch, views, first, last):
                total += _end(batch, views, restart, first, last)
            _observe(batch, views.observation, first, last)
        return total

    return step


@cached_kernel(_SOURCES, **OPTIONS)
def count_outside(digest: int) -> Callable[[NDArray[np.int64], int], int]:
    """Return the kernel that counts actions outside the space."""

    def count_outside(actions: NDArray[np.int64], num_actions: int) -> int:
        """Return how many of ``actions [n] int64`` are not one of 0 to ``num_actions`` - 1."""
        _ = digest
        count, limit = 0, uint64(num_actions)
        for env in range(actions.size):
            # Negative ones are large without a sign.
            count += int(uint64(actions[env]) >= limit)
        return count

    return count_outside


@cached_kernel(_SOURCES, **OPTIONS)
def begin(
    digest: int,
) -> Callable[[Batch, NDArray[np.bool_], NDArray[np.float32]], None]:
    """Return the kernel that begins episodes."""

    def begin(batch: Batch, chosen: NDArray[np.bool_], observation: NDArray[np.float32]) -> None:
        """Begin episodes in the environments of ``chosen [n] bool``; write their observations."""
        _ = digest
        for env in range(batch.time.size):
            if chosen[env]:
                _begin(batch, env)
                _observe(batch, observation, env, env + 1)

    return begin


_OF_BATCH = {
    AcrobotBatch: ACROBOT,
    CartPoleBatch: CARTPOLE,
    MountainCarBatch: MOUNTAIN_CAR,
    MountainCarContinuousBatch: MOUNTAIN_CAR_CONTINUOUS,
    PendulumBatch: PENDULUM,
}
