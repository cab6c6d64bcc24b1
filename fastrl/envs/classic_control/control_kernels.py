"""Compiled loops over environments: one call steps all of them and begins their next episodes.

Quantities are stored contiguously, ``state[quantity, env] float32``, so that the loops of
`_advance` and `_observe` become vector instructions. Results of an environment never depend on its
neighbours.

`step` and `begin` are written once. A task's dynamics are compiled from the source of its tensor
program: a loop calls it with one environment's numbers instead of tensors. The class of a batch
selects the task; the compiler makes a version for each used one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import int32, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from fastrl.envs.classic_control import loop_ops, tensor_ops
from fastrl.envs.classic_control.acrobot import Acrobot
from fastrl.envs.classic_control.cartpole import CartPole
from fastrl.envs.classic_control.loop_ops import OPTIONS, compiled, inlined, move_on
from fastrl.envs.classic_control.mountain_car import MountainCar, MountainCarContinuous
from fastrl.envs.classic_control.no_velocity import (
    CartPoleNoVel,
    MountainCarContinuousNoVel,
    PendulumNoVel,
)
from fastrl.envs.classic_control.pendulum import Pendulum
from fastrl.envs.tensor.base import TensorEnv
from fastrl.jit import cached_kernel

_cgutils: Any = cgutils
_intrinsic: Any = intrinsic
_NamedTupleType: Any = types.NamedTuple
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_BLOCK = 512
"""Number of environments that pass through all loops together: few enough for the L1 cache."""


class EnvArrays(NamedTuple):
    """n environments of one kind."""

    # Float32 ``[P]`` if shared, else ``[P, n]``, in the order of the parameters' class.
    params: NDArray[np.float32]
    state: NDArray[np.float32]  # ``[S, n]`` float32, in the order of the state's class; changed
    time: NDArray[np.int32]  # ``[n]`` int32: steps since the episode began; changed
    time_limit: int  # steps after which an episode is truncated
    noise: NDArray[Any]  # noise of first states; see `loop_ops.drawn`
    noise_size: int  # random numbers per first state


class Views(NamedTuple):
    """The arrays that one step reads and writes."""

    action: NDArray[Any]  # ``[n]`` int64, or float32 for continuous actions
    # ``[n, k]`` float32: next observation; the first of the next episode if one is done.
    observation: NDArray[np.float32]
    reward: NDArray[np.float32]  # ``[n]`` float32
    terminated: NDArray[np.bool_]  # ``[n]`` bool
    truncated: NDArray[np.bool_]  # ``[n]`` bool; never with ``terminated``
    final_observation: NDArray[np.float32]  # ``[n, k]`` float32; written at ends


_FIELDS = [(name, Any) for name in EnvArrays._fields]
AcrobotBatch = NamedTuple("AcrobotBatch", _FIELDS)  # type: ignore[misc]
CartPoleBatch = NamedTuple("CartPoleBatch", _FIELDS)  # type: ignore[misc]
MountainCarBatch = NamedTuple("MountainCarBatch", _FIELDS)  # type: ignore[misc]
MountainCarContinuousBatch = NamedTuple("MountainCarContinuousBatch", _FIELDS)  # type: ignore[misc]
PendulumBatch = NamedTuple("PendulumBatch", _FIELDS)  # type: ignore[misc]
CartPoleNoVelBatch = NamedTuple("CartPoleNoVelBatch", _FIELDS)  # type: ignore[misc]
PendulumNoVelBatch = NamedTuple("PendulumNoVelBatch", _FIELDS)  # type: ignore[misc]
CarNoVelBatch = NamedTuple("CarNoVelBatch", _FIELDS)  # type: ignore[misc]

_TASKS: Mapping[Any, type[TensorEnv[Any, Any]]] = {
    AcrobotBatch: Acrobot,
    CartPoleBatch: CartPole,
    MountainCarBatch: MountainCar,
    MountainCarContinuousBatch: MountainCarContinuous,
    PendulumBatch: Pendulum,
    CartPoleNoVelBatch: CartPoleNoVel,
    PendulumNoVelBatch: PendulumNoVel,
    CarNoVelBatch: MountainCarContinuousNoVel,
}
BATCHES = {task.spec.id: kind for kind, task in _TASKS.items()}
"""The class of each id's batches."""


@_intrinsic  # type: ignore[untyped-decorator]
def _taken(context: Any, kind: Any, columns: Any, index: Any, last: Any) -> Any:
    """Return a NamedTuple of row ``index`` of ``columns [n, k]``, or of ``[k]``, and ``last``."""
    names = kind.instance_class._fields
    fields = [columns.dtype] * (len(names) - 1) + [last]
    found = _NamedTupleType(fields, kind.instance_class)

    def generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, row, end = arguments
        struct = context.make_array(columns)(context, builder, array)
        values = []
        for column in range(len(names) - 1):
            place = [context.get_constant(types.intp, column)]
            if columns.ndim == 2:
                place.insert(0, context.cast(builder, row, index, types.intp))
            pointer = _cgutils.get_item_pointer(context, builder, columns, struct, place)
            values.append(context.unpack_value(builder, columns.dtype, pointer))
        return context.make_tuple(builder, found, [*values, end])

    return found(kind, columns, index, last), generated


@_intrinsic  # type: ignore[untyped-decorator]
def _put(context: Any, columns: Any, index: Any, values: Any) -> Any:
    """Write a tuple of k floats into row ``index`` of ``columns [n, k]``."""

    def generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, numbers = arguments
        struct = context.make_array(columns)(context, builder, array)
        for column, value in enumerate(_cgutils.unpack_tuple(builder, numbers)):
            place = [
                context.cast(builder, row, index, types.intp),
                context.get_constant(types.intp, column),
            ]
            pointer = _cgutils.get_item_pointer(context, builder, columns, struct, place)
            context.pack_value(builder, columns.dtype, value, pointer)
        return context.get_dummy_value()

    return types.void(columns, index, values), generated


def _own(params: Any, rows: NDArray[np.float32], env: int) -> Any:
    """Return the parameters of an environment, in the form of ``params``, those of another one."""


@overload(_own, strict=False)
def _own_of(params: Any, rows: Any, env: Any) -> Any:
    if rows.ndim == 1:
        return lambda params, rows, env: params
    kind = params.instance_class
    return lambda params, rows, env: _taken(kind, rows.T, env, params.max_episode_steps)


@cache
def _for_numbers(program: Any) -> Any:
    """Compile a function of tensors for one environment's numbers.

    `loop_ops` replaces `tensor_ops`, and functions that it calls are also compiled.
    Methods are called with None for ``self``, which dynamics do not use.
    """
    names: dict[str, Any] = {}
    for name in program.__code__.co_names:
        meant = program.__globals__.get(name)
        if meant is tensor_ops:
            names[name] = loop_ops
        elif isinstance(meant, FunctionType):
            names[name] = _for_numbers(meant)
    return inlined(FunctionType(program.__code__, program.__globals__ | names))


@compiled
def _begin(batch: EnvArrays, env: int) -> None:
    _initialize(batch, env)
    move_on(batch.noise, env, batch.noise_size)
    batch.time[env] = 0


@compiled
def _end(batch: EnvArrays, views: Views, restart: bool, first: int, last: int) -> int:
    """Write final observations; begin the next episodes if ``restart``; return how many ended."""
    # Listed without a branch first, as processors cannot predict which episodes end.
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
def _let_time_pass(batch: EnvArrays, views: Views, first: int, last: int) -> bool:
    """Mark the episodes at their time limit, and return whether any episode ended."""
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


def _advance(batch: EnvArrays, views: Views, first: int, last: int) -> None:
    """Advance environments first to last by one step; write reward and ``terminated``."""


@overload(_advance, strict=False)
def _advance_of(batch: types.NamedTuple, views: Views, first: Any, last: Any) -> Any:
    task = _TASKS[batch.instance_class]
    kind, params_kind, transition = task.state_type, task.params_type, _for_numbers(task.transition)

    def advance(batch: EnvArrays, views: Views, first: int, last: int) -> None:
        action, reward = views.action[first:last], views.reward[first:last]
        terminated, states = views.terminated[first:last], batch.state.T
        params = _taken(params_kind, batch.params.T, first, batch.time_limit)
        for i in range(reward.size):
            own = _own(params, batch.params, first + i)
            state = _taken(kind, states, first + i, 0)
            reached, paid, over = transition(None, state, action[i], own)
            _put(states, first + i, reached[:-1])
            reward[i], terminated[i] = paid, over

    return advance


def _observe(batch: EnvArrays, target: NDArray[np.float32], first: int, last: int) -> None:
    """Write the observations of environments first to last."""


@overload(_observe, strict=False)
def _observe_of(batch: types.NamedTuple, target: NDArray[np.float32], first: Any, last: Any) -> Any:
    task = _TASKS[batch.instance_class]
    kind, observe = task.state_type, _for_numbers(task.observe)

    def write(batch: EnvArrays, target: NDArray[np.float32], first: int, last: int) -> None:
        rows, states = target[first:last], batch.state.T
        for i in range(rows.shape[0]):
            _put(rows, i, observe(None, _taken(kind, states, first + i, 0)))

    return write


def _initialize(batch: EnvArrays, env: int) -> None:
    """Set the first state of an environment's episode."""


@overload(_initialize, strict=False)
def _initialize_of(batch: types.NamedTuple, env: Any) -> Any:
    task = _TASKS[batch.instance_class]
    params_kind, initial = task.params_type, _for_numbers(task.initial)

    def initialize(batch: EnvArrays, env: int) -> None:
        params = _taken(params_kind, batch.params.T, env, batch.time_limit)
        _put(batch.state.T, env, initial(None, (batch.noise, env), params)[:-1])

    return initialize


@cached_kernel(_SOURCES, **OPTIONS)
def step(digest: int) -> Callable[[EnvArrays, Views, bool, int, int], int]:
    """Return the kernel that steps some of n environments."""

    def step(batch: EnvArrays, views: Views, restart: bool, start: int, stop: int) -> int:
        """Step environments ``start`` to ``stop``; return the number of episodes that ended.

        Args:
            batch: The environments.
            views: Arrays that are read and written.
            restart: Whether the next episode begins in the step that ends one.
            start: The first environment.
            stop: The one after the last.
        """
        _ = digest
        total = 0
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            _advance(batch, views, first, last)
            if _let_time_pass(batch, views, first, last):
                total += _end(batch, views, restart, first, last)
            _observe(batch, views.observation, first, last)
        return total

    return step


@cached_kernel(_SOURCES, **OPTIONS)
def count_outside(digest: int) -> Callable[[NDArray[np.int64], int], int]:
    """Return the kernel that counts actions outside of the space."""

    def count_outside(actions: NDArray[np.int64], num_actions: int) -> int:
        """Return the number of ``actions [n] int64`` that are not from 0 to ``num_actions`` - 1."""
        _ = digest
        count, limit = 0, uint64(num_actions)
        for env in range(actions.size):
            # Negative numbers are large as unsigned ones.
            count += int(uint64(actions[env]) >= limit)
        return count

    return count_outside


@cached_kernel(_SOURCES, **OPTIONS)
def begin(
    digest: int,
) -> Callable[[EnvArrays, NDArray[np.bool_], NDArray[np.float32]], None]:
    """Return the kernel that begins episodes."""

    def begin(
        batch: EnvArrays, chosen: NDArray[np.bool_], observation: NDArray[np.float32]
    ) -> None:
        """Begin episodes in the environments of ``chosen [n] bool``; write their observations."""
        _ = digest
        for env in range(batch.time.size):
            if chosen[env]:
                _begin(batch, env)
                _observe(batch, observation, env, env + 1)

    return begin
