"""`make_vec`: from an id to a vector environment on the backend that suits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.vector import AutoresetMode

from fastrl.cores import usable_cores
from fastrl.envs.lookup import nearest
from fastrl.envs.make import EnvFactory
from fastrl.vector.choice import choose_backend
from fastrl.vector.driver import Driver
from fastrl.vector.failures import ArgumentError, EnvFailure
from fastrl.vector.instances import EnvKwargs, kwargs_of_instances
from fastrl.vector.process_driver import ProcessDriver
from fastrl.vector.serial_driver import SerialDriver
from fastrl.vector.spec import InstanceFactory, VectorPlan, Wrapper
from fastrl.vector.thread_driver import ThreadDriver
from fastrl.vector.vector_env import FastVectorEnv, Output

Backend = Literal["auto", "serial", "threads", "processes", "native"]
Autoreset = Literal["same_step", "next_step", "disabled"]
Id = str | Callable[..., Any] | GymnasiumSpec

_MODES: Mapping[str, AutoresetMode] = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}
_DRIVERS: Mapping[str, Callable[[VectorPlan], Driver]] = {
    "serial": SerialDriver,
    "threads": ThreadDriver,
    "processes": ProcessDriver,
}


def make_vec(
    env: Id | Sequence[Callable[..., Any]],
    num_envs: int | None = None,
    *,
    backend: Backend = "auto",
    num_workers: int | None = None,
    autoreset: Autoreset | AutoresetMode | str = "same_step",
    env_kwargs: EnvKwargs | None = None,
    env_kwargs_seed: int = 0,
    wrappers: Sequence[Wrapper] = (),
    max_episode_steps: int | None = None,
    copy: bool = True,
    output: Output = "numpy",
    timeout_s: float = 120.0,
    start_timeout_s: float = 300.0,
    **kwargs: Any,  # noqa: ANN401
) -> FastVectorEnv:
    """Build ``num_envs`` environments behind gymnasium's vector interface.

    Args:
        env: An id, a factory (see `fastrl.envs.make`), gymnasium's specification, or a list of
            factories, one for each environment.
        num_envs: How many; the length of the list by default.
        backend: ``serial`` steps all in turn, ``threads`` overlaps calls that wait, ``processes``
            uses all cores, ``native`` steps fastrl's or ALE's own batched environment. ``auto``
            takes ``native`` for ids that are batched by themselves, and otherwise times one
            environment and takes ``processes`` where they pay, else ``serial``.
        num_workers: Processes, by default one per usable core; or threads, by default one per
            environment.
        autoreset: Whether the next episode begins in the step that ends one, in the next step, or
            when the caller resets.
        env_kwargs: Parameters of the instances; see `fastrl.vector.instances`.
        env_kwargs_seed: Seed with which parameters are drawn.
        wrappers: Callables or import paths, applied to every environment in this order.
        max_episode_steps: Time limit in steps; None keeps the id's own.
        copy: Return copies of observations; otherwise views that hold until the second step or
            reset from now.
        output: ``numpy`` arrays or ``torch`` tensors.
        timeout_s: How long a step, reset or call may take; has no effect on ``serial``.
        start_timeout_s: How long building all environments may take.
        **kwargs: Parameters of all instances, such as ``render_mode``.

    Raises:
        ArgumentError: An argument is wrong.
        EnvError: An environment cannot be built.
        EnvFailure: An environment died or hung while it was built.
    """
    ids = list(env) if isinstance(env, Sequence) and not isinstance(env, str) else [env]
    num_envs = _checked_count(num_envs if num_envs is not None else len(ids), ids)
    own = kwargs_of_instances(env_kwargs, num_envs, env_kwargs_seed)
    if len(ids) > 1 and len(own) == 1:
        own = own * num_envs
    instances = [
        InstanceFactory(
            EnvFactory(
                _plain(ids[index % len(ids)]),
                {**_kwargs_of(ids[index % len(ids)]), **kwargs, **each},
                max_episode_steps=max_episode_steps,
            ),
            tuple(wrappers),
        )
        for index, each in enumerate(own)
    ]
    plan = VectorPlan(
        name=_name(instances[0].factory),
        instances=instances,
        num_envs=num_envs,
        num_workers=1,
        autoreset=_checked_mode(autoreset),
        different_spaces=len(own) > 1 and env_kwargs is not None,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
    )
    return build(plan, backend, num_workers, copy=copy, output=_checked(output, Output, "output"))


def build(
    plan: VectorPlan,
    backend: str,
    num_workers: int | None,
    *,
    copy: bool = True,
    output: Output = "numpy",
) -> FastVectorEnv:
    """Start the environments of a plan; see `make_vec`."""
    _checked(backend, Backend, "backend")
    if backend == "auto":
        backend = choose_backend(plan)
    plan = dataclasses.replace(plan, num_workers=_workers(backend, num_workers, plan.num_envs))
    try:
        driver = _DRIVERS[backend](plan)
    except EnvFailure as failure:
        raise type(failure)(
            f"env {failure.env_index} of '{plan.name}' ({failure.worker}) {failure.args[0]}, "
            "while it was built",
            worker=failure.worker,
            env_index=failure.env_index,
            remote_traceback=failure.remote_traceback,
        ) from failure.__cause__
    return FastVectorEnv(plan, driver, backend, copy=copy, output=output)


def _workers(backend: str, wanted: int | None, num_envs: int) -> int:
    if wanted is not None and wanted < 1:
        raise ArgumentError(f"num_workers must be at least 1, got {wanted}")
    if backend in ("serial", "native"):
        return 1
    default = num_envs if backend == "threads" else usable_cores()
    return min(wanted or default, num_envs)


def _checked_count(num_envs: int, ids: list[Any]) -> int:
    if num_envs < 1 or len(ids) not in (1, num_envs):
        raise ArgumentError(
            f"num_envs must be at least 1 and match the list of factories, got {num_envs} for "
            f"{len(ids)}"
        )
    return num_envs


def _checked(value: Any, literal: Any, name: str) -> Any:  # noqa: ANN401
    known = get_args(literal)
    if value not in known:
        hint = nearest(str(value), known)
        raise ArgumentError(f"{name} must be one of {', '.join(known)}, got '{value}'{hint}")
    return value


def _checked_mode(autoreset: AutoresetMode | str) -> AutoresetMode:
    if isinstance(autoreset, AutoresetMode):
        return autoreset
    for name, mode in _MODES.items():
        if autoreset in (name, mode.value):
            return mode
    raise ArgumentError(
        f"autoreset must be one of {', '.join(_MODES)}, got '{autoreset}'"
        + nearest(str(autoreset), _MODES)
    )


def _name(factory: EnvFactory) -> str:
    """Return what messages call an environment: of a partial, what it calls."""
    made = factory.id
    while isinstance(made, partial):
        made = made.func
    return dataclasses.replace(factory, id=made).name


def _plain(env: Any) -> Any:  # noqa: ANN401
    return env.id if isinstance(env, GymnasiumSpec) else env


def _kwargs_of(env: Any) -> dict[str, Any]:  # noqa: ANN401
    return dict(env.kwargs) if isinstance(env, GymnasiumSpec) else {}
