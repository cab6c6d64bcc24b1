"""The environments of a worker, single ones or a batch, which write into their rows.

The same code runs in worker processes, in threads and in the caller's thread. Before all are built,
one is built and called with a deadline for each of its calls.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.closing import Closable, build_all, close_all, closing_on_error
from fastrl.envs.batched_env import Columns, StepViews, part_of, renumber
from fastrl.envs.classic_control.screen import quicken
from fastrl.envs.family import Vector
from fastrl.envs.gym_loop import NEVER, StepLoop
from fastrl.envs.rows import ObservationWriter, reset_values, step_values
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.envs.wrappers import peel, watchers
from fastrl.errors import USERS_FAILURES, ArgumentError, EnvError, cause, one_line
from fastrl.spaces import flatten, nested
from fastrl.vector.exchange import NO_RESET, UNSEEDED, Exchange, array_of_objects, splitter
from fastrl.vector.failures import EnvTimeoutError
from fastrl.vector.infos import copied, gather
from fastrl.vector.vector_plan import Env, InstanceSpec, NativeBuild, VectorPlan
from fastrl.workers.descent import start_thread

Found = TypeVar("Found")
_SLICE_S = 0.1
_LOGGER = logging.getLogger(__name__)
_DICTS = {dict}
_NONE: Mapping[str, Any] = {}


def within_deadlines(
    plan: VectorPlan, look: Callable[[Callable[[str], None]], AbstractContextManager[Found]]
) -> Found:
    """Build an environment in another thread, and return the result of ``look`` for it.

    Threads cannot be killed: one whose environment hangs is abandoned, and ends with the process.

    Args:
        plan: Plan with the environment and the deadlines.
        look: Returns a context that builds an environment, yields a result, and closes it.
            Its argument is a function to call before each further call of the environment,
            with a name such as ``reset()``.

    Raises:
        EnvTimeoutError: A call overran its deadline; the error names it.
        Exception: An error of ``look``.
    """
    under_way = "its constructor", plan.start_timeout_s, time.monotonic()
    outcome = Future[Found]()

    def begin(call: str) -> None:
        nonlocal under_way
        under_way = call, plan.timeout_s, time.monotonic()

    if sys.platform == "darwin" and plan.factories[0].kwargs.get("render_mode") == "human":
        # On macOS windows belong to the main thread.
        with look(begin) as found:
            return found

    def run() -> None:
        try:
            with look(begin) as found:
                outcome.set_result(found)
        except BaseException as error:  # SystemExit included: the caller must get it
            if not outcome.done():
                outcome.set_exception(error)

    thread = start_thread("fastrl-probe", run)
    while not wait([outcome], _SLICE_S).done:
        call, timeout_s, began_s = under_way
        if time.monotonic() > began_s + timeout_s:
            late = f"did not return from {call} within {timeout_s:g} s"
            raise EnvTimeoutError("probe", late, env_index=0)
    thread.join(plan.close_timeout_s)
    if thread.is_alive() and outcome.exception() is None:
        _LOGGER.warning(
            "env 0 of '%s' did not return from close() within %g s, and was abandoned; raise "
            "close_timeout_s if it needs longer",
            plan.name,
            plan.close_timeout_s,
        )
    return outcome.result()


def close_probed(env: Closable, name: str) -> None:
    """Close an environment that is no longer needed; log its errors."""
    try:
        env.close()
    except USERS_FAILURES as error:
        _LOGGER.warning("'%s' raised in close(): %s", name, cause(error))


class EnvGroup(StepLoop):
    """Some environments of a plan.

    Steps and resets bypass gymnasium's outer checker, order enforcer and time limit, whose work
    this loop does; all other calls go to the whole environment.

    Args:
        plan: Plan of the environments.
        spec: Properties that every environment must have.
        exchange: Memory of actions and results.
        envs: Indices of the environments.
        built: Environments of ``envs`` that are already built, in this order.
        at: Element 0 is always the index of the environment that is being stepped, reset or
            called, to explain errors and timeouts.

    Attributes:
        begin_close: Called just before each environment is closed.

    Raises:
        EnvError: An environment cannot be built, or has other spaces than the first.
    """

    def __init__(
        self,
        plan: VectorPlan,
        spec: InstanceSpec,
        exchange: Exchange,
        envs: range,
        at: MutableSequence[int],
        built: Sequence[Env] = (),
    ) -> None:
        self.envs = envs
        self._spec, self._exchange, self._mode = spec, exchange, plan.autoreset
        self.begin_close: Callable[[], None] = lambda: None

        def build(index: int) -> Env:
            at[0] = index
            return plan.build(index)

        self._whole = build_all(chain(built, map(build, envs[len(built) :])))
        with closing_on_error(*self._whole):
            skipped = [watchers(env) for env in self._whole]
            self._bare = [peel(env)[0] for env in self._whole]
            self._limits = [[w for w in outer if isinstance(w, TimeLimit)] for outer in skipped]
            self._enforcers = [
                [w for w in outer if isinstance(w, OrderEnforcing)] for outer in skipped
            ]
            super().__init__(
                self._bare,
                spec,
                plan.name,
                first=envs.start,
                at=at,
                different=plan.different_spaces,
            )
        for env in self._whole:
            quicken(env.unwrapped)
        self._keep_limits()
        self._index_list = list(envs)
        self._views = [bank.part(slice(envs.start, envs.stop)) for bank in exchange.banks]
        kind = ObservationWriter if exchange.fits_rows else _ObjectWriter
        self._writer: Any = kind(spec.observation_space, envs.start, at)
        action = self._views[0].action
        self._split = splitter(spec.action_space, action)
        self._split_one = [
            splitter(spec.action_space, part_of(action, slice(index, index + 1)))
            for index in range(len(envs))
        ]

    def step(self, bank: int) -> Columns:
        """Step every environment once; return their infos."""
        infos = self._step_all(self._split(), self._views[bank])
        if set(map(type, infos)) != _DICTS:
            for index, info in zip(self._indices, infos, strict=True):
                self._at[0] = index
                _check_info("step", info)
        return gather(self._index_list, infos)

    def step_one(self, env_index: int, bank: int) -> dict[str, Any]:
        """Step one environment, or reset it if its ``reset_seed`` says so; return its info."""
        index = env_index - self.envs.start
        self._at[0] = env_index
        views, seeds = self._views[bank], self._exchange.reset_seed
        if (seed := int(seeds[env_index])) != NO_RESET:
            seeds[env_index], views.reward[index] = NO_RESET, 0.0
            return self._start(index, None if seed == UNSEEDED else seed, None, views)
        observations: list[Any] = [None] * len(self.envs)
        infos = list(observations)
        step = self._next_step(index)
        self._clock.advance_one(index)
        result = step_values(step(self._split_one[index]()[0]), env_index)
        observations[index], reward, terminated, truncated, infos[index] = result
        flags = bool(terminated), bool(truncated) or self._clock.is_due(index)
        views.terminated[index] = views.truncated[index] = False
        if any(flags):
            self._end(index, flags, observations, infos, views)
        _check_info("step", infos[index])
        self._writer.write_one(index, observations[index], views.observation)
        self._write_rewards([reward], views.reward[index : index + 1], index)
        return infos[index]  # type: ignore[no-any-return]

    def reset(
        self,
        bank: int,
        options: Mapping[str, Any] | None,
        seeds: Sequence[int | None],
        mask: Sequence[bool],
    ) -> Columns:
        """Start an episode in those environments that ``mask`` selects; return their infos."""
        views, chosen = self._views[bank], np.flatnonzero(mask).tolist()
        infos = [self._start(index, seeds[index], options, views) for index in chosen]
        return gather([self._first + index for index in chosen], infos)

    def apply(
        self, function: Callable[[Any, Any], Any], arguments: Sequence[Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Return ``function(env, argument)`` for those environments that ``mask`` selects."""
        found = [function(self._whole[index], arguments[index]) for index in self._chosen(mask)]
        self._keep_limits()  # which the function may have changed
        return found

    def is_over(self, env_index: int) -> bool:
        """Return whether an environment's episode is done and its next one has not begun."""
        return env_index - self.envs.start in self._over

    def environments(self) -> list[Env]:
        """Return all environments, with the steps of their time limits up to date."""
        return [self._whole[index] for index in self._chosen([True] * len(self._whole))]

    def different_spaces(self) -> list[Any]:
        """Return the observation space of every environment, empty if all are equal."""
        found = [env.observation_space for env in self._whole]
        return [] if all(space == self._spec.observation_space for space in found) else found

    def close(self) -> None:
        """Close all environments; safe to call twice."""
        envs, self._whole = self._whole, []
        self._claim.release()
        close_all(envs, self.begin_close)

    def _start(
        self, index: int, seed: int | None, options: Mapping[str, Any] | None, views: StepViews
    ) -> dict[str, Any]:
        """Begin an episode of one environment and write its row; return its info."""
        observation, info = self._reset(index, seed, options)
        views.terminated[index] = views.truncated[index] = False
        self._writer.write_one(index, observation, views.observation)
        return info

    def _reset(
        self, index: int, seed: int | None, options: Mapping[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        self._at[0] = self._first + index
        self._clock.restart(index)
        self._over.discard(index)
        for enforcer in self._enforcers[index]:
            enforcer._has_reset = True
        given = None if options is None else dict(options)
        result = self._bare[index].reset(seed=seed, options=given)
        observation, info = reset_values(result, self._at[0])
        _check_info("reset", info)
        return observation, info

    def _end(
        self,
        index: int,
        flags: tuple[bool, bool],
        observations: list[Any],
        infos: list[Any],
        views: StepViews,
    ) -> None:
        """Set the flags of a done episode; start the next one, or mark that it must start."""
        views.terminated[index], views.truncated[index] = flags
        if self._mode is not AutoresetMode.SAME_STEP:
            self._over.add(index)
            return
        _check_info("step", infos[index])
        # Copies: the environment may write the next ones into the same objects.
        final = observations[index]
        final = final.copy() if type(final) is np.ndarray else copy.deepcopy(final)
        final_info = copied(infos[index])
        observations[index], info = self._reset(index, None, None)
        infos[index] = {"final_obs": final, "final_info": final_info, **info}

    def _next_step(self, index: int) -> Callable[[Any], Any]:
        if index not in self._over:
            return self._steps[index]
        if self._mode is AutoresetMode.DISABLED:
            self._at[0] = self._first + index
            raise EnvError("its episode is over: reset it with options={'reset_mask': …} first")

        def reset(_: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, info = self._reset(index, None, None)
            return observation, 0.0, False, False, info

        return reset

    def _chosen(self, mask: Sequence[bool]) -> Iterator[int]:
        """Yield the chosen environments, each with its time limit up to date."""
        for index in np.flatnonzero(mask).tolist():
            for limit in self._limits[index]:
                limit._elapsed_steps = self._clock.elapsed(index)  # type: ignore[assignment]
            self._at[0] = self._first + index
            yield index

    def _keep_limits(self) -> None:
        self._clock.limit(
            [
                min((each._max_episode_steps or NEVER for each in limits), default=NEVER)
                for limits in self._limits
            ]
        )


class _ObjectWriter:
    """`ObservationWriter` for spaces without arrays of fixed size."""

    def __init__(self, *_: object) -> None: ...

    def write_all(self, observations: Sequence[Any], rows: Sequence[Any]) -> None:
        rows[0][:] = array_of_objects(observations)

    def write_one(self, index: int, observation: Any, rows: Sequence[Any]) -> None:
        rows[0][index] = observation


def check_call(name: str, owner: str) -> None:
    """Reject a call of a method that must be called on all environments together.

    Raises:
        ArgumentError: It is ``reset``, ``step`` or the like, or no name.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"call takes the name of a method, got {brief(name)}")
    if name in ("reset", "step", "close"):
        raise ArgumentError(f"call('{name}') is rejected; use {name}() of {owner}")


def attribute(
    env: Any, _: object = None, *, name: str, args: Any = None, kwargs: Mapping[str, Any] = _NONE
) -> Any:
    """Return an attribute of an environment, or the result of a method if there are ``args``."""
    look_up = getattr(env, "get_wrapper_attr", None)
    found = look_up(name) if look_up is not None else getattr(env, name)
    return found(*args, **kwargs) if callable(found) and args is not None else found


def set_attribute(env: Any, value: Any, *, name: str) -> None:
    """Set an attribute of an environment."""
    set_it = getattr(env, "set_wrapper_attr", None) or partial(setattr, env)
    set_it(name, value)


def _check_info(method: str, info: object) -> None:
    if not isinstance(info, Mapping):
        raise EnvError(f"{method}() returned the info {one_line(info)}; expected a dict")


class NativeGroup:
    """A batch of environments with the interface of `EnvGroup`.

    Args:
        vector: The batch, whose environments are stepped together. fastrl's own batches write
            straight into the rows; the results of others are copied.
        exchange: Memory of actions and results.
        envs: Indices of the environments.
        at: Element 0 is the index of the environment that raised, or of the first one.
        native: Builder of the batch.

    Attributes:
        begin_close: Called just before the batch is closed.
    """

    def __init__(
        self,
        vector: Vector,
        exchange: Exchange,
        envs: range,
        at: MutableSequence[int],
        native: NativeBuild,
    ) -> None:
        self.envs, self._at = envs, at
        self._vector, self._family = vector, native.family
        self._called = _WithBatch(vector)
        self._single_infos = native.family.infos_of_single if native.as_single else None
        self.begin_close: Callable[[], None] = lambda: None
        at[0] = envs.start
        rows = slice(envs.start, envs.stop)
        self._banks = [bank.part(rows) for bank in exchange.banks]
        self._space = vector.single_observation_space
        # Subclasses may override step and reset.
        own = type(vector) is BatchedVectorEnv
        self._writes = cast("BatchedVectorEnv", vector) if own else _Copied(vector)
        self._views = [self._writes.bound(bank) for bank in self._banks]

    def step(self, bank: int) -> Columns:
        """Step every environment once; return their infos."""
        views, rows = self._views[bank], self._banks[bank]
        self._check_finite(views.action)
        try:
            infos = self._writes.step_rows(views)
        except EnvError as error:
            named = renumber(error, self.envs.start)
            self._at[0] = self.envs.start if named is None else named
            raise
        if views.reward is not rows.reward:
            rows.reward[:] = views.reward
        if not infos and self._single_infos is None:
            return {}
        ended = rows.terminated | rows.truncated
        columns = self._columns(infos, ended)
        if self._single_infos is None:
            return columns
        single = self._single_infos(self._vector, rows.terminated, ended, self.envs.start)
        return columns | dict(single.items())

    def _check_finite(self, actions: Sequence[NDArray[Any]]) -> None:
        for leaf in actions:
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                bad = np.argwhere(~np.isfinite(leaf))[0]
                self._at[0] = self.envs.start + int(bad[0])
                raise EnvError(f"the action holds {leaf[tuple(bad)]}; expected finite numbers")

    def reset(
        self,
        bank: int,
        options: Mapping[str, Any] | None,
        seeds: Sequence[int | None],
        mask: Sequence[bool],
    ) -> Columns:
        """Start an episode in the environments that ``mask`` selects; return their infos."""
        chosen = np.array(mask)
        given = dict(options or {})
        wanted = [seed for seed, each in zip(seeds, mask, strict=True) if each]
        if not chosen.all():
            given["reset_mask"] = chosen
        if not chosen.any():
            return {}
        seed: Any = None
        if None not in wanted:
            seed = self._family.seeds([int(each or 0) for each in wanted])
        views = self._banks[bank]
        infos = self._writes.reset_rows(views.observation, seed, given or None)
        views.terminated[chosen] = views.truncated[chosen] = False
        return self._columns(infos or {}, chosen)

    def apply(
        self, function: Callable[[Any, Any], Any], _: Sequence[Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Return ``function(batch, None)`` for the environments that ``mask`` selects.

        If the result has one value for each environment, these are returned.
        """
        found = function(self._called, None)
        whole = not isinstance(found, list | tuple | np.ndarray) or len(found) != len(mask)
        values = [found] * len(mask) if whole else list(found)
        return [value for value, wanted in zip(values, mask, strict=True) if wanted]

    def different_spaces(self) -> list[Any]:
        """Return an empty list: all have the same space."""
        return []

    def close(self) -> None:
        """Close the batch; safe to call twice."""
        self.begin_close()
        self._vector.close()

    def _columns(
        self, infos: Mapping[str, Any], ended: NDArray[np.bool_]
    ) -> dict[str, tuple[list[int], Any]]:
        """Return infos in gymnasium's vector form as columns; without masks they are of all."""
        columns: dict[str, tuple[list[int], Any]] = {}
        for key, values in infos.items():
            if (key.startswith("_") and key[1:] in infos) or key == "env_id":
                continue
            mask = infos.get(f"_{key}", ended if key.startswith("final_") else None)
            here = np.flatnonzero(mask) if mask is not None else np.arange(len(self.envs))
            indices = (here + self.envs.start).tolist()
            if isinstance(values, dict) and key != "final_obs":
                columns[key] = (indices, self._columns(values, ended))
            elif key == "final_obs":
                finals = [_one(self._space, values, index) for index in here.tolist()]
                columns[key] = (indices, finals)
            elif len(here):
                columns[key] = (indices, np.asarray(values)[here])
        return {key: column for key, column in columns.items() if column[0]}


class _WithBatch:
    """A vector environment with the attributes of its batch."""

    def __init__(self, vector: Vector) -> None:
        self._vector, self._batched = vector, getattr(vector, "batched", vector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vector if hasattr(self._vector, name) else self._batched, name)


class _Copied:
    """A third-party vector environment, whose results are copied into the rows."""

    def __init__(self, vector: Vector) -> None:
        self._vector = vector

    def bound(self, views: StepViews) -> StepViews:
        return views

    def step_rows(self, views: StepViews) -> dict[str, Any]:
        space = self._vector.single_action_space
        result = self._vector.step(nested(space, (row.copy() for row in views.action)))
        seen, reward, terminated, truncated, infos = step_values(result, "the batch")
        self._write(seen, views.observation)
        views.reward[:] = reward
        views.terminated[:], views.truncated[:] = terminated, truncated
        return infos

    def reset_rows(self, rows: Any, seed: Any, options: Any) -> dict[str, Any]:
        result = self._vector.reset(seed=seed, options=options)
        observation, infos = reset_values(result, "the batch")
        self._write(observation, rows)
        return infos

    def _write(self, observation: Any, rows: Sequence[NDArray[Any]]) -> None:
        space = self._vector.single_observation_space
        for row, found in zip(rows, flatten(space, observation), strict=True):
            np.copyto(row, found, casting="same_kind")


def _one(space: Any, values: Any, index: int) -> Any:
    """Return the final observation of one environment, from an array of objects or from rows."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        return values[index]
    rows = [np.array(np.asarray(each)[index]) for each in flatten(space, values)]
    return nested(space, rows)


Group = EnvGroup | NativeGroup


def build_first(plan: VectorPlan) -> Any:
    """Build the first environment, or the first batch of them."""
    native = plan.native
    return plan.build(0) if native is None else native.build(plan.envs_of(0), plan.autoreset)


@contextmanager
def probe(plan: VectorPlan) -> Iterator[InstanceSpec]:
    """Build the first environment or batch, yield its `InstanceSpec`, then close it."""
    native = plan.native
    if native is not None and native.own:
        # Spaces may depend on parameters: only a batch of all has those that fit every worker's.
        first = native.build(range(plan.num_envs), plan.autoreset)
    else:
        first = build_first(plan)
    try:
        yield InstanceSpec.of(first, plan.name)
    finally:
        close_probed(first, plan.name)


def build_group(
    plan: VectorPlan,
    spec: InstanceSpec,
    exchange: Exchange,
    envs: range,
    at: MutableSequence[int],
    built: Sequence[Any] = (),
) -> Group:
    """Build the environments of a worker; see `EnvGroup`."""
    native = plan.native
    if native is None:
        return EnvGroup(plan, spec, exchange, envs, at, built)
    batch = built[0] if built else native.build(envs, plan.autoreset)
    return NativeGroup(batch, exchange, envs, at, native)
