"""Tensor environments by the id of the gymnasium environment that they equal."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.arguments import nearest_or_all
from fastrl.devices import existing_device
from fastrl.envs.family import Family, batch_family, own_families
from fastrl.envs.lookup import attribute
from fastrl.envs.tensor.base import TensorEnv
from fastrl.errors import ConfigError, EnvError

TENSOR_ENVS = {id_: path for family in own_families() for id_, path in family.tensors.items()}


def find_tensor(env_id: object) -> tuple[Family, str] | None:
    """Return the family of a tensor environment, and what it calls it; None where there is none."""
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
        device: Where the parameters are to be.

    Raises:
        EnvError: There is no such environment, it cannot be differentiable, or it is to be compiled
            where it cannot.
        ConfigError: There is no such device, or the type is no floating-point one.
    """
    found = find_tensor(name)
    if found is None:
        hint = nearest_or_all(str(name), TENSOR_ENVS)
        raise EnvError(f"'{name}' is no tensor environment{hint}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type such as torch.float32, got {dtype}")
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
