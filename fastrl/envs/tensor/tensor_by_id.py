"""Builds tensor environments by the id of the equal gymnasium environment."""

from __future__ import annotations

import dataclasses
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from fastrl.arguments import brief, instance, nearest, nearest_or_all
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.family import Family, batch_family, own_families
from fastrl.envs.lookup import attribute
from fastrl.envs.tensor.base import TensorEnv
from fastrl.envs.tensor.randomize import Randomized, named
from fastrl.errors import ConfigError, EnvError, one_line
from fastrl.system import existing_device

if TYPE_CHECKING:
    from fastrl.config import EnvConfig

TENSOR_ENVS = {id_: path for family in own_families() for id_, path in family.tensors.items()}


def find_tensor(env_id: object) -> tuple[Family, str] | None:
    """Return the family of a tensor environment and its name in that family, or None."""
    family = batch_family(env_id)
    if family is None:
        return None
    name = str(family.batch_id(str(env_id))).removeprefix(family.prefix)
    return (family, name) if name in family.tensors else None


def make_tensor(
    name: str,
    *,
    differentiable: bool = False,
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[TensorEnv[Any, Any], Any]:
    """Return an environment as pure functions, and its parameters.

    Args:
        name: Id, such as ``Pendulum-v1``.
        differentiable: Let gradients flow through the step.
        compiled: Step by a compiled loop, many times as fast on a CPU; see `Family.compiled`.
        dtype: Floating-point type of parameters, states, observations and rewards.
        device: Device of the parameters.

    Raises:
        EnvError: There is no such environment, or it cannot be differentiable or compiled.
        ConfigError: There is no such device, or the type is not floating-point.
    """
    found = find_tensor(name)
    if found is None:
        hint = nearest_or_all(one_line(name), TENSOR_ENVS)
        raise EnvError(f"{brief(name)} is not a tensor environment{hint}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(
            f"dtype must be a floating-point type such as torch.float32, got {brief(dtype)}"
        )
    device = existing_device(device)
    family, short = found
    env = attribute(family.tensors[short], "make_tensor")(differentiable=differentiable)
    if compiled:
        if not family.compiled:
            raise EnvError(f"'{name}' has no compiled loop; leave out compiled=True")
        if dtype != torch.float32 or device.type != "cpu":
            raise EnvError(f"compiled=True is for float32 on the CPU, got {dtype} on {device}")
        env = attribute(family.compiled, "make_tensor")(env)
    return env, env.default_params(dtype, device)


def device_factory(config: EnvConfig) -> EnvFactory:
    """Return the factory of the environments of ``sampler.kind: device``.

    Tensor environments are built as compiled loops, for the CPU. Environments of plug-ins and
    factories must be a `DeviceEnv`.

    Raises:
        EnvError: The environment cannot be stepped on a device.
    """
    factory = EnvFactory.from_config(config)
    if find_tensor(config.id) is None and factory.is_custom:
        return dataclasses.replace(factory, must_be_on_device=True)
    family, name = _found(config)
    return dataclasses.replace(factory, id=family.prefix + name)


def configured(config: EnvConfig, device: torch.device) -> tuple[TensorEnv[Any, Any], Any]:
    """Return the environment as pure functions, and its parameters.

    Args:
        config: Its ``kwargs`` are parameters by name, a number each, and ``expose_params``; see
            `fastrl.envs.tensor.randomize`.
        device: Device of the parameters.

    Raises:
        EnvError: There is no tensor environment of this id, or an argument is invalid.
    """
    _found(config)
    if config.wrappers:
        raise EnvError(
            f"env.wrappers: '{config.id}' is a tensor environment, which takes no wrappers"
        )
    env, params = make_tensor(config.id, device=device)
    kwargs = dict(config.kwargs)
    expose = instance("env.kwargs.expose_params", kwargs.pop("expose_params", False), bool)
    bounds = {}
    for key, value in named(env, kwargs).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            given = env.written.get(key, key)
            raise EnvError(f"env.kwargs.{given}: expected a finite number, got {value!r}")
        bounds[key] = (float(value), float(value))
        params = params._replace(**{key: torch.full_like(getattr(params, key), value)})
    env = env.within(bounds)
    if config.action_mask == "off":
        env.spec = dataclasses.replace(env.spec, mask_source=None)
    if config.max_episode_steps is not None:
        env.spec = dataclasses.replace(env.spec, max_episode_steps=config.max_episode_steps)
        limit = torch.full_like(params.max_episode_steps, config.max_episode_steps)
        params = params._replace(max_episode_steps=limit)
    if config.randomize or expose:
        env = Randomized(env, config.randomize, expose=bool(expose))
    return env, params


def _found(config: EnvConfig) -> tuple[Family, str]:
    found = find_tensor(config.id)
    if found is None:
        raise EnvError(
            f"env.id: '{config.id}' is not a tensor environment{nearest(config.id, TENSOR_ENVS)}; "
            f"sampler.kind: device is for {', '.join(TENSOR_ENVS)}, and for each DeviceEnv"
        )
    return found
