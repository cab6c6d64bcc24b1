"""`make_vec`, which builds a vector environment on the backend that suits it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from gymnasium import VectorizeMode
from gymnasium.vector import AutoresetMode

from fastrl.arguments import at_least_one, nearest, one_of
from fastrl.closing import close_all, closing_on_error
from fastrl.envs.classic_control.screen import quicken
from fastrl.envs.env_factory import Wrapper
from fastrl.envs.family import batch_family, own_families
from fastrl.envs.lookup import registered_spec
from fastrl.errors import ArgumentError, EnvError, FastrlError, one_line
from fastrl.system import usable_cores
from fastrl.vector.choice import Start, choose_backend, choose_shares
from fastrl.vector.concurrent import ConcurrentEnvs
from fastrl.vector.driver import Driver, SerialDriver
from fastrl.vector.failures import EnvFailure
from fastrl.vector.process_driver import ProcessDriver
from fastrl.vector.thread_driver import ThreadDriver
from fastrl.vector.vector_arguments import (
    Autoreset,
    Backend,
    EnvKwargs,
    Id,
    ObservationMode,
    Recipe,
    joined,
)
from fastrl.vector.vector_env import FastVectorEnv, Output
from fastrl.vector.vector_plan import AutoresetError, NativeBuild, VectorPlan

DEFAULT_AUTORESET = AutoresetMode.NEXT_STEP
"""Default of gymnasium's `SyncVectorEnv`."""
_DRIVERS: Mapping[str, Callable[[VectorPlan], Driver]] = {
    "serial": SerialDriver,
    "native": SerialDriver,
    "threads": ThreadDriver,
    "processes": ProcessDriver,
}


def make_vec(
    env: Id | Sequence[Callable[..., Any]],
    num_envs: int | None = None,
    *,
    backend: Backend = "auto",
    num_workers: int | None = None,
    autoreset: Autoreset | AutoresetMode | str | None = None,
    env_kwargs: EnvKwargs | None = None,
    env_kwargs_seed: int = 0,
    wrappers: Sequence[Wrapper] | None = (),
    max_episode_steps: int | None = None,
    atari_preprocessing: bool = True,
    copy: bool = True,
    observation_mode: ObservationMode | None = None,
    output: Output = "numpy",
    timeout_s: float = 120.0,
    start_timeout_s: float = 300.0,
    close_timeout_s: float = 10.0,
    vectorization_mode: VectorizeMode | str | None = None,
    vector_kwargs: Mapping[str, Any] | None = None,
    autoreset_mode: AutoresetMode | str | None = None,
    **kwargs: Any,
) -> FastVectorEnv:
    """Build ``num_envs`` environments behind gymnasium's vector interface.

    Args:
        env: An id, a factory (see `fastrl.envs.env_factory`), a specification of gymnasium's, or a
            list of these, one for each environment.
        num_envs: Number of environments; by default the length of the list.
        backend: ``serial`` steps environments in turn, ``threads`` overlaps calls that wait,
            ``processes`` uses all cores, ``native`` steps a batch: environments that step together
            by their own code. ``auto`` chooses ``native`` for ids that are batches
            (``fastrl/…``, ``ALE/…``), if the batch takes the arguments, and for ids whose batch is
            the same to the last bit (``Crafter-v1``). Otherwise it times one environment and, if
            that is not clear, lets ``serial`` and ``processes`` step for a fifth of a second.
        num_workers: Number of processes, by default one per usable core or, with ``auto``, fewer;
            or number of threads, by default one per environment.
        autoreset: Whether the next episode begins in the step that ends one (``same_step``), in
            the next step (``next_step``), or when the caller resets (``disabled``). The default is
            that of gymnasium's `SyncVectorEnv`, ``next_step``, except for batches that support only
            ``same_step`` (``fastrl/…`` robots and ``fastrl/Crafter-v1``).
        env_kwargs: Parameters of single environments: one mapping for all, a list with one for
            each, or a function of the index. Values such as ``{uniform: [low, high]}`` are drawn
            once for each environment; see `fastrl.vector.vector_arguments`.
        env_kwargs_seed: Seed of the parameters that are drawn.
        wrappers: Callables or import paths, applied to every environment in this order.
        max_episode_steps: Time limit in steps; None keeps the id's own.
        atari_preprocessing: Whether ``ALE/…`` ids have the standard preprocessing, whose options
            are then among the keyword arguments; see `fastrl.envs.atari`.
        copy: Return copies of observations; otherwise views that are valid until the second step
            or reset from now.
        observation_mode: ``same`` rejects environments whose observations have other bounds than
            those of the first, ``different`` accepts them, and a tuple gives the observation spaces
            of all environments and of one. By default bounds may differ if environments have
            factories or parameters of their own.
        output: ``numpy`` arrays or ``torch`` tensors.
        timeout_s: Deadline in seconds of a step, reset or call; has no effect on ``serial``.
        start_timeout_s: Deadline in seconds for building all environments.
        close_timeout_s: Deadline in seconds for closing an environment, or a batch of them. After
            it, its worker process and the children of that are killed, or its thread is
            abandoned; has no effect on ``serial``.
        vectorization_mode: Gymnasium's name for ``backend``: ``sync`` is ``serial``, ``async`` is
            ``processes``, ``vector_entry_point`` is ``native``.
        vector_kwargs: As in gymnasium: ``autoreset_mode``, ``copy``, ``observation_mode``.
            ``shared_memory``, ``context`` and ``daemon`` are accepted and have no effect.
        autoreset_mode: Gymnasium's name for ``autoreset``.
        **kwargs: Parameters of all environments, such as ``render_mode``.

    Raises:
        ArgumentError: An argument is wrong, or two contradict each other.
        EnvError: An environment cannot be built.
        EnvFailure: An environment died or hung while it was built.
    """
    chosen, mode, copy, observation_mode = joined(
        backend,
        autoreset,
        copy,
        observation_mode,
        vectorization_mode,
        vector_kwargs,
        autoreset_mode,
    )
    one_of("output", output, get_args(Output))
    if num_workers is not None:
        num_workers = at_least_one("num_workers", num_workers)
    recipe = Recipe.of(env, num_envs, kwargs, env_kwargs, env_kwargs_seed)
    may_differ = len(recipe.own) > 1 or not recipe.is_uniform
    plan = recipe.plan(
        mode or DEFAULT_AUTORESET,
        wrappers,
        max_episode_steps,
        preprocessing=atari_preprocessing,
        different_spaces=observation_mode != "same" if observation_mode else may_differ,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        close_timeout_s=close_timeout_s,
    )
    start = partial(_start, copy=copy, output=output, observation_mode=observation_mode)
    if chosen not in ("auto", "native"):
        workers = _workers(chosen, num_workers, plan.num_envs)
        return start(replace(plan, num_workers=workers), chosen)
    alone = not wrappers and atari_preprocessing and recipe.is_uniform
    given, family = recipe.ids[0], batch_family(recipe.ids[0])
    # A batch may equal single environments bit for bit.
    twin = (
        (chosen == "auto" and alone and len(recipe.own) == 1)
        and family is not None
        and family.stands_for(given, recipe.common, plan.autoreset)
    )
    is_batch = family is not None and family.batch_id(given) == given
    batch_error: Exception | None = None
    if chosen == "native" or twin or (alone and is_batch):
        if wrappers:
            raise ArgumentError("native environments take no wrappers; use another backend")
        try:
            native = _native(plan, recipe, mode, max_episode_steps, as_single=twin)
            return start(_shared(native, num_workers, start), "native")
        except (ArgumentError, EnvError) as error:
            # Single environments know every mode.
            takes_more = family is not None and family.singles_take_more
            is_for_single = takes_more or isinstance(error, AutoresetError)
            if chosen == "native" or isinstance(error, EnvFailure) or not is_for_single:
                raise
            batch_error = error
    return _start_single(plan, num_workers, start, batch_error)


def _start_single(
    plan: VectorPlan, num_workers: int | None, start: Start, batch_error: Exception | None
) -> FastVectorEnv:
    """Start single environments on the backend that suits them.

    Raises:
        Exception: ``batch_error``, why there is no batch, if these cannot be built either.
    """
    try:
        chosen, workers = choose_backend(plan, num_workers, start)
        return start(replace(plan, num_workers=workers), chosen)
    except FastrlError:
        if batch_error is not None:
            raise batch_error from None
        raise


def make_concurrent(
    env: Id | Sequence[Callable[..., Any]],
    num_envs: int | None = None,
    *,
    autoreset: Autoreset | AutoresetMode | str | None = None,
    env_kwargs: EnvKwargs | None = None,
    env_kwargs_seed: int = 0,
    wrappers: Sequence[Wrapper] | None = (),
    max_episode_steps: int | None = None,
    timeout_s: float = 120.0,
    autoreset_mode: AutoresetMode | str | None = None,
    **kwargs: Any,
) -> ConcurrentEnvs:
    """Build ``num_envs`` environments in this process whose methods must be awaited.

    Environments with coroutines must come from a factory: gymnasium's wrappers do not await.

    Args:
        env: As for `make_vec`.
        num_envs: As for `make_vec`.
        autoreset: As for `make_vec`.
        env_kwargs: As for `make_vec`.
        env_kwargs_seed: As for `make_vec`.
        wrappers: As for `make_vec`.
        max_episode_steps: As for `make_vec`.
        timeout_s: Deadline in seconds of a step, reset or call.
        autoreset_mode: Gymnasium's name for ``autoreset``.
        **kwargs: Parameters of all environments, such as ``render_mode``.

    Raises:
        ArgumentError: An argument is wrong.
        EnvError: An environment cannot be built.
    """
    for name in ("vectorization_mode", "vector_kwargs"):
        if name in kwargs:
            raise ArgumentError(f"make_concurrent takes no {name}: calls overlap in this process")
    _, mode, _, _ = joined(autoreset=autoreset, autoreset_mode=autoreset_mode)
    recipe = Recipe.of(env, num_envs, kwargs, env_kwargs, env_kwargs_seed)
    plan = recipe.plan(mode or DEFAULT_AUTORESET, wrappers, max_episode_steps, timeout_s=timeout_s)
    envs: list[Any] = []
    try:
        envs.extend(map(plan.build, range(plan.num_envs)))
        for env in envs:
            quicken(getattr(env, "unwrapped", env))
    except BaseException:
        # A coroutine would have to be awaited, and there may be no event loop yet.
        close_all(env for env in envs if not inspect.iscoroutinefunction(env.close))
        raise
    return ConcurrentEnvs(envs, autoreset=plan.autoreset, timeout_s=plan.timeout_s, name=plan.name)


def _start(plan: VectorPlan, backend: str, **arguments: Any) -> FastVectorEnv:
    """Start a plan on a backend.

    Args:
        plan: Plan of the environments.
        backend: Name of the backend.
        **arguments: Further arguments of `FastVectorEnv`.
    """
    several = backend == "native" and plan.num_workers > 1
    try:
        driver = _DRIVERS["processes" if several else backend](plan)
    except EnvFailure as failure:
        raise failure.explain(plan.name, "while it was built") from failure.__cause__
    with closing_on_error(driver):
        return FastVectorEnv(plan, driver, backend, **arguments)


def _native(
    plan: VectorPlan,
    recipe: Recipe,
    mode: AutoresetMode | None,
    max_episode_steps: int | None,
    *,
    as_single: bool,
) -> VectorPlan:
    """Return the plan of the batch that behaves like the single environments of a recipe.

    Without a ``mode`` the plan has the default mode, or else one that the batch supports.

    Raises:
        ArgumentError: There is no such batch, or the environments have several ids.
    """
    if not recipe.is_uniform:
        names = ", ".join(dict.fromkeys(one_line(each) for each in recipe.ids))
        raise ArgumentError(f"native environments must have the same id, got {names}")
    given, common = str(recipe.ids[0]), recipe.common
    family = batch_family(recipe.ids[0])
    if family is None:
        hint = nearest(given, [f.prefix + short for f in own_families() for short in f.names()])
        raise ArgumentError(
            f"there is no native '{one_line(recipe.ids[0])}'{hint}; use another backend"
        )
    name, known = str(family.batch_id(given)), family.autoreset_modes
    if as_single and max_episode_steps is None:
        max_episode_steps = registered_spec(given).max_episode_steps
    if max_episode_steps is not None:
        common = {**common, "max_episode_steps": max_episode_steps}
    own = recipe.own if len(recipe.own) > 1 else []
    build = NativeBuild(family, name, common, own, as_single=as_single)
    if mode is None:
        mode = DEFAULT_AUTORESET if DEFAULT_AUTORESET in known else known[0]
    return replace(plan, name=name, native=build, autoreset=mode)


def _shared(plan: VectorPlan, wanted: int | None, start: Start) -> VectorPlan:
    """Divide a batch among threads if it supports them, else among processes."""
    native = plan.native
    assert native is not None
    shares = _workers("processes", wanted, plan.num_envs)
    if native.family.shares_threads:
        shared = replace(plan, native=replace(native, num_threads=shares))
    else:
        shared = replace(plan, num_workers=shares)
    if shares == 1 or wanted is not None or native.family.sharing_pays:
        return shared
    return choose_shares(plan, shared, start)


def _workers(backend: str, wanted: int | None, num_envs: int) -> int:
    if backend == "serial":
        return 1
    default = num_envs if backend == "threads" else usable_cores()
    return min(wanted or default, num_envs)
