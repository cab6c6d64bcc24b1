"""`make_vec`: from an id to a vector environment on the backend that suits it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gymnasium import VectorizeMode
from gymnasium.vector import AutoresetMode

from fastrl.closing import close_all
from fastrl.cores import usable_cores
from fastrl.envs.classic_control.screen import quicken
from fastrl.envs.family import batch_family
from fastrl.envs.lookup import registered_spec
from fastrl.envs.make import Wrapper
from fastrl.errors import EnvError, FastrlError
from fastrl.vector.choice import choose_backend
from fastrl.vector.concurrent import ConcurrentEnvs
from fastrl.vector.driver import Driver
from fastrl.vector.failures import ArgumentError, EnvFailure, at_least_one, brief, deadline
from fastrl.vector.instances import EnvKwargs
from fastrl.vector.native_build import (
    AutoresetError,
    NativeBuild,
    is_native,
    native_family,
)
from fastrl.vector.process_driver import ProcessDriver
from fastrl.vector.recipe import Id, Recipe
from fastrl.vector.serial_driver import SerialDriver
from fastrl.vector.spec import VectorPlan
from fastrl.vector.stepping import (
    Autoreset,
    Backend,
    ObservationMode,
    Stepping,
    checked,
    checked_mode,
)
from fastrl.vector.thread_driver import ThreadDriver
from fastrl.vector.vector_env import FastVectorEnv, Output

DEFAULT_AUTORESET = AutoresetMode.NEXT_STEP
"""That of gymnasium's `SyncVectorEnv`."""
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
    **kwargs: Any,  # noqa: ANN401
) -> FastVectorEnv:
    """Build ``num_envs`` environments behind gymnasium's vector interface.

    Args:
        env: An id, a factory (see `fastrl.envs.make`), a specification of gymnasium's, or a list
            of these, one for each environment.
        num_envs: How many; the length of the list by default.
        backend: ``serial`` steps all in turn, ``threads`` overlaps calls that wait, ``processes``
            uses all cores, ``native`` steps a family's own batched environment. ``auto`` takes
            ``native`` for ids that are batched by themselves (``fastrl/…``, ``ALE/…``), where the
            batch takes the arguments, and for ids whose batch is the same to the last bit
            (``Crafter-v1``), and otherwise times one environment and takes ``processes`` where
            they pay, else ``serial``.
        num_workers: Processes, by default one per usable core; or threads, by default one per
            environment.
        autoreset: Whether the next episode begins in the step that ends one (``same_step``), in
            the next step (``next_step``), or when the caller resets (``disabled``). The default is
            that of gymnasium's `SyncVectorEnv`, ``next_step``; of batches that know only
            ``same_step`` (``fastrl/…`` robots and ``fastrl/Crafter-v1``) it is that.
        env_kwargs: Parameters of the instances; see `fastrl.vector.instances`.
        env_kwargs_seed: Seed with which parameters are drawn.
        wrappers: Callables or import paths, applied to every environment in this order.
        max_episode_steps: Time limit in steps; None keeps the id's own.
        atari_preprocessing: Whether ``ALE/…`` ids come with the standard preprocessing, whose
            options are then among the keyword arguments; see `fastrl.envs.atari`.
        copy: Return copies of observations; otherwise views that hold until the second step or
            reset from now.
        observation_mode: ``same`` refuses environments whose observations have other bounds than
            those of the first, ``different`` takes them, and a tuple names the observation spaces
            of all environments and of one. By default bounds may differ where every environment
            has its own factory or parameters.
        output: ``numpy`` arrays or ``torch`` tensors.
        timeout_s: How long a step, reset or call may take; has no effect on ``serial``.
        start_timeout_s: How long building all environments may take.
        close_timeout_s: How long closing an environment, or a batch of them, may take. Then its
            worker process is ended with all that it has started, or its thread left behind; has
            no effect on ``serial``.
        vectorization_mode: Gymnasium's name for ``backend``: ``sync`` is ``serial``, ``async`` is
            ``processes``, ``vector_entry_point`` is ``native``.
        vector_kwargs: As in gymnasium: ``autoreset_mode``, ``copy``, ``observation_mode``.
            ``shared_memory``, ``context`` and ``daemon`` are taken and have no effect.
        autoreset_mode: Gymnasium's name for ``autoreset``.
        **kwargs: Parameters of all instances, such as ``render_mode``.

    Raises:
        ArgumentError: An argument is wrong, or two contradict each other.
        EnvError: An environment cannot be built.
        EnvFailure: An environment died or hung while it was built.
    """
    stepping = Stepping.of(backend, autoreset, copy, observation_mode)
    stepping = stepping.joined(vectorization_mode, vector_kwargs, autoreset_mode)
    checked(output, Output, "output")
    recipe = Recipe.of(env, num_envs, kwargs, env_kwargs, env_kwargs_seed)
    plan = VectorPlan(
        name=recipe.name,
        instances=recipe.instances(wrappers, max_episode_steps, atari_preprocessing),
        num_envs=recipe.num_envs,
        num_workers=1,
        autoreset=stepping.autoreset or DEFAULT_AUTORESET,
        different_spaces=_may_differ(recipe, stepping.observation_mode),
        timeout_s=deadline("timeout_s", timeout_s),
        start_timeout_s=deadline("start_timeout_s", start_timeout_s),
        close_timeout_s=deadline("close_timeout_s", close_timeout_s),
        env_kwargs=recipe.kwargs_of_all,
    )
    start = partial(_start, stepping=stepping, output=output)
    chosen = stepping.backend
    if chosen not in ("auto", "native"):
        workers = _workers(chosen, num_workers, plan.num_envs)
        return start(replace(plan, num_workers=workers), chosen)
    alone = not wrappers and atari_preprocessing and recipe.is_uniform
    twin = chosen == "auto" and alone and _has_twin(recipe, plan.autoreset)
    refusal: Exception | None = None
    if chosen == "native" or twin or (alone and is_native(recipe.ids[0])):
        if wrappers:
            raise ArgumentError("native environments take no wrappers; take another backend")
        try:
            native = _native(plan, recipe, max_episode_steps, as_single=twin)
            if stepping.autoreset is None:
                native = _in_its_own_mode(native)
            return start(_with_native_workers(native, num_workers), "native")
        except (ArgumentError, EnvError) as error:
            # Single environments know every mode.
            family = batch_family(recipe.ids[0])
            takes_more = family is not None and family.singles_take_more
            is_for_single = takes_more or isinstance(error, AutoresetError)
            if chosen == "native" or isinstance(error, EnvFailure) or not is_for_single:
                raise
            refusal = error
    return _start_single(plan, num_workers, start, refusal)


def _start_single(
    plan: VectorPlan,
    num_workers: int | None,
    start: Callable[[VectorPlan, str], FastVectorEnv],
    refusal: Exception | None,
) -> FastVectorEnv:
    """Start single environments on the backend that suits them.

    Args:
        plan: What to build.
        num_workers: Of the caller, None for the default.
        start: Starts a plan on a backend.
        refusal: Why a batch could not be built; raised if single environments cannot be either.
    """
    try:
        chosen = choose_backend(plan)
        workers = _workers(chosen, num_workers, plan.num_envs)
        return start(replace(plan, num_workers=workers), chosen)
    except FastrlError:
        if refusal is not None:
            raise refusal from None
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
    **kwargs: Any,  # noqa: ANN401
) -> ConcurrentEnvs:
    """Build ``num_envs`` environments whose methods are to be awaited, here in this process.

    Environments with coroutines come from a factory: gymnasium's own wrappers do not await.

    Args:
        env: As for `make_vec`.
        num_envs: As for `make_vec`.
        autoreset: As for `make_vec`.
        env_kwargs: As for `make_vec`.
        env_kwargs_seed: As for `make_vec`.
        wrappers: As for `make_vec`.
        max_episode_steps: As for `make_vec`.
        timeout_s: How long a step, reset or call may take.
        autoreset_mode: Gymnasium's name for ``autoreset``.
        **kwargs: Parameters of all instances, such as ``render_mode``.

    Raises:
        ArgumentError: An argument is wrong.
        EnvError: An environment cannot be built.
    """
    for name in ("vectorization_mode", "vector_kwargs"):
        if name in kwargs:
            raise ArgumentError(f"make_concurrent takes no {name}: calls overlap in this process")
    stepping = Stepping(autoreset=checked_mode(autoreset, "autoreset"))
    stepping = stepping.joined(None, None, autoreset_mode)
    recipe = Recipe.of(env, num_envs, kwargs, env_kwargs, env_kwargs_seed)
    instances = recipe.instances(wrappers, max_episode_steps, preprocessing=True)
    mode, timeout_s = stepping.autoreset or DEFAULT_AUTORESET, deadline("timeout_s", timeout_s)
    envs: list[Any] = []
    try:
        envs.extend(instances[i % len(instances)].build() for i in range(recipe.num_envs))
        for env in envs:
            quicken(getattr(env, "unwrapped", env))
    except BaseException:
        # A coroutine would have to be awaited, and there may be no event loop yet.
        close_all(env for env in envs if not inspect.iscoroutinefunction(env.close))
        raise
    return ConcurrentEnvs(envs, autoreset=mode, timeout_s=timeout_s, name=recipe.name)


def _may_differ(recipe: Recipe, mode: ObservationMode | None) -> bool:
    if mode is None:
        return len(recipe.own) > 1 or not recipe.is_uniform
    return mode != "same"


def _start(plan: VectorPlan, backend: str, *, stepping: Stepping, output: Output) -> FastVectorEnv:
    several = backend == "native" and plan.num_workers > 1
    try:
        driver = _DRIVERS["processes" if several else backend](plan)
    except EnvFailure as failure:
        raise type(failure)(
            f"env {failure.env_index} of '{plan.name}' ({failure.worker}) {failure.args[0]}, "
            "while it was built",
            worker=failure.worker,
            env_index=failure.env_index,
            remote_traceback=failure.remote_traceback,
        ) from failure.__cause__
    mode = stepping.observation_mode
    try:
        return FastVectorEnv(
            plan, driver, backend, copy=stepping.copy, output=output, observation_mode=mode
        )
    except BaseException:
        driver.close()
        raise


def _has_twin(recipe: Recipe, autoreset: AutoresetMode) -> bool:
    family = batch_family(recipe.ids[0])
    alike = family is not None and family.stands_for(recipe.ids[0], recipe.common, autoreset)
    return len(recipe.own) == 1 and alike


def _native(
    plan: VectorPlan, recipe: Recipe, max_episode_steps: int | None, *, as_single: bool
) -> VectorPlan:
    if not recipe.is_uniform:
        names = ", ".join(dict.fromkeys(brief(each) for each in recipe.ids))
        raise ArgumentError(f"native environments are all of one id, got {names}")
    given, common = str(recipe.ids[0]), recipe.common
    family = native_family(recipe.ids[0])
    name = str(family.batch_id(given))
    if as_single and max_episode_steps is None:
        max_episode_steps = registered_spec(given).max_episode_steps
    if max_episode_steps is not None:
        common = {**common, "max_episode_steps": max_episode_steps}
    own = recipe.own if len(recipe.own) > 1 else []
    build = NativeBuild(family, name, common, own, plan.autoreset, as_single=as_single)
    return replace(plan, name=name, native=build)


def _in_its_own_mode(plan: VectorPlan) -> VectorPlan:
    assert plan.native is not None
    known = plan.native.family.autoreset_modes
    mode = DEFAULT_AUTORESET if DEFAULT_AUTORESET in known else known[0]
    return replace(plan, autoreset=mode, native=replace(plan.native, autoreset=mode))


def _with_native_workers(plan: VectorPlan, wanted: int | None) -> VectorPlan:
    """Share the work among threads where the batch knows them, else among processes."""
    native = plan.native
    assert native is not None
    shares = _workers("processes", wanted, plan.num_envs)
    pays = native.family.pays_to_share(plan.num_envs, as_single=native.as_single)
    if wanted is None and not pays:
        shares = 1
    if native.family.shares_threads:
        return replace(plan, native=replace(native, num_threads=shares))
    return replace(plan, num_workers=shares)


def _workers(backend: str, wanted: int | None, num_envs: int) -> int:
    if wanted is not None:
        wanted = at_least_one("num_workers", wanted)
    if backend == "serial":
        return 1
    default = num_envs if backend == "threads" else usable_cores()
    return min(wanted or default, num_envs)
