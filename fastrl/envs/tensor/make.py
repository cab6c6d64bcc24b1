"""Tensor environments by the id of the gymnasium environment that they equal."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.arguments import nearest_or_all
from fastrl.devices import existing_device
from fastrl.envs.lookup import attribute
from fastrl.envs.tensor.base import TensorEnv
from fastrl.errors import ConfigError, EnvError

# Import paths, so that asking for one environment imports one.
TENSOR_ENVS = {
    "Acrobot-v1": "fastrl.envs.classic_control.acrobot:Acrobot",
    "CartPole-v1": "fastrl.envs.classic_control.cartpole:CartPole",
    "MountainCar-v0": "fastrl.envs.classic_control.mountain_car:MountainCar",
    "MountainCarContinuous-v0": (
        "fastrl.envs.classic_control.mountain_car_continuous:MountainCarContinuous"
    ),
    "Pendulum-v1": "fastrl.envs.classic_control.pendulum:Pendulum",
}

_COMPILED = "fastrl.envs.classic_control.compiled:CompiledEnv"


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
        compiled: Step by a compiled loop, many times as fast on a CPU; see
            `fastrl.envs.classic_control.compiled`.
        dtype: Floating-point type of parameters, states, observations and rewards.
        device: Where the parameters are to be.

    Raises:
        EnvError: There is no such environment, it cannot be differentiable, or it is to be compiled
            where it cannot.
        ConfigError: There is no such device, or the type is no floating-point one.
    """
    if not isinstance(name, str) or name not in TENSOR_ENVS:
        hint = nearest_or_all(str(name), TENSOR_ENVS)
        raise EnvError(f"'{name}' is no tensor environment{hint}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a floating-point type such as torch.float32, got {dtype}")
    device = existing_device(device)
    env = attribute(TENSOR_ENVS[name], "make_tensor")(differentiable=differentiable)
    if compiled:
        if dtype != torch.float32 or device.type != "cpu":
            raise EnvError(f"compiled=True is for float32 on the CPU, got {dtype} on {device}")
        env = attribute(_COMPILED, "make_tensor")(env)
    return env, env.default_params(dtype, device)
