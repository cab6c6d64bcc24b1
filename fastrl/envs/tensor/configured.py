"""Tensor environments as the section ``env`` of a configuration describes them."""

from __future__ import annotations

import dataclasses
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from fastrl.arguments import nearest
from fastrl.envs.family import Family
from fastrl.envs.make import EnvFactory
from fastrl.envs.tensor.base import TensorEnv
from fastrl.envs.tensor.make import TENSOR_ENVS, find_tensor, make_tensor
from fastrl.envs.tensor.randomize import Randomized, named
from fastrl.errors import EnvError

if TYPE_CHECKING:
    from fastrl.config import EnvConfig


def compiled_factory(config: EnvConfig) -> EnvFactory:
    """Return what builds the environments as compiled loops, for the CPU.

    Raises:
        EnvError: There is no tensor environment of this id.
    """
    family, name = _found(config)
    return dataclasses.replace(EnvFactory.from_config(config), id=family.prefix + name)


def configured(config: EnvConfig, device: torch.device) -> tuple[TensorEnv[Any, Any], Any]:
    """Return the environment as pure functions, and its parameters.

    Args:
        config: Its ``kwargs`` are parameters by name, a number each, and ``expose_params``; see
            `fastrl.envs.tensor.randomize`.
        device: Where the parameters are to be.

    Raises:
        EnvError: There is no tensor environment of this id, or an argument does not fit.
    """
    _found(config)
    if config.wrappers:
        raise EnvError(
            f"env.wrappers: '{config.id}' is a tensor environment, which wrappers do not fit"
        )
    env, params = make_tensor(config.id, device=device)
    given = dict(config.kwargs)
    expose = given.pop("expose_params", False)
    bounds = {}
    for key, value in named(env, given).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise EnvError(f"env.kwargs.{key}: expected a finite number, got {value!r}")
        bounds[key] = (float(value), float(value))
        params = params._replace(**{key: torch.full_like(getattr(params, key), value)})
    env = env.within(bounds)
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
            f"env.id: '{config.id}' is no tensor environment{nearest(config.id, TENSOR_ENVS)}; "
            f"sampler.kind: device is for {', '.join(TENSOR_ENVS)}"
        )
    return found
