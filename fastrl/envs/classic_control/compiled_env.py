"""Compiled loops behind the interface of the tensor programs, for the CPU."""

from __future__ import annotations

from typing import Any, Generic

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance
from fastrl.envs.classic_control import control_kernels
from fastrl.envs.classic_control.control_batch import LARGEST, require_choices
from fastrl.envs.classic_control.control_kernels import EnvArrays, Views
from fastrl.envs.tensor.base import Info, P, S, TensorEnv, TensorWrapper
from fastrl.errors import EnvError


class CompiledEnv(TensorWrapper[S, P], Generic[S, P]):
    """A tensor environment whose `step` is one compiled loop; equal up to rounding, and also pure.

    For n float32 environments on the CPU with one time limit; `torch.func.vmap`,
    `torch.compile` and gradients are not supported.
    """

    def __init__(self, env: TensorEnv[S, P]) -> None:
        """Compile ``env``.

        Raises:
            EnvError: It is differentiable.
        """
        if instance("env", env, TensorEnv).differentiable:
            raise EnvError(f"'{env.spec.id}' is either differentiable or compiled, not both")
        super().__init__(env)

    def step(
        self, state: S, action: Tensor, noise: Tensor, params: P
    ) -> tuple[Any, S, Tensor, Tensor, Tensor, Info]:
        """See `TensorEnv.step`; the state has the batch axis, ``[n]``.

        Action, noise and parameters have it, too, or are shared by all environments.

        Raises:
            EnvError: A tensor has another shape, dtype or device, or requires
                gradients; or a discrete action is outside its space.
            ConfigError: State or parameters belong to another environment.
        """
        batch = self._batch(state, noise, params)
        views = self._views(action, batch.time.size)
        control_kernels.step(batch, views, True, 0, batch.time.size)
        tensors = [torch.from_numpy(array) for array in views[1:]]
        observation, reward, terminated, truncated, final = tensors
        ended = (terminated | truncated)[:, None]
        after = self.state_type(*map(torch.from_numpy, (*batch.state, batch.time)))
        info = {"final_observation": torch.where(ended, final, observation)}
        return observation, after, reward, terminated, truncated, info

    def _batch(self, state: Any, noise: Tensor, params: Any) -> EnvArrays:
        instance("state", state, self.state_type)
        instance("params", params, self.params_type)
        *quantities, time = state
        n = time.numel() if isinstance(time, Tensor) else 0
        for name, quantity in zip(self.state_type._fields, state, strict=True):  # type: ignore[attr-defined]
            dtype = torch.int32 if quantity is time else torch.float32
            _require(f"state.{name}", quantity, dtype, (n,))
        for name, value in zip(self.params_type._fields, params, strict=True):  # type: ignore[attr-defined]
            # The time limit is read as a number, so any whole number is accepted.
            whole = name == "max_episode_steps" and isinstance(value, Tensor)
            _require(
                f"params.{name}", value, value.dtype if whole else torch.float32, (), (1,), (n,)
            )
        _require("noise", noise, torch.float32, (n, self.noise_size), (self.noise_size,))
        *values, limit = params
        values = [each.reshape(()) if each.numel() == 1 else each for each in values]
        least, greatest = (int(end) for end in limit.aminmax())
        if least != greatest or greatest > LARGEST:
            raise EnvError(
                "params.max_episode_steps: compiled environments have one time limit of at most "
                f"{LARGEST:,} steps, got {least} to {greatest}"
            )
        kind: Any = control_kernels.BATCHES[self.spec.id]
        batch: EnvArrays = kind(
            params=torch.stack(torch.broadcast_tensors(*values)).numpy(),
            state=torch.stack(quantities).numpy(),
            time=time.clone(memory_format=torch.contiguous_format).numpy(),
            time_limit=least,
            noise=noise.expand(n, self.noise_size).contiguous().numpy(),
            noise_size=self.noise_size,
        )
        return batch

    def _views(self, action: Tensor, n: int) -> Views:
        space, shape = self.spec.action_space, self.spec.observation_space.shape
        own = space.shape or ()
        discrete = isinstance(space, spaces.Discrete)
        given = action.detach() if isinstance(action, Tensor) else action
        if discrete and isinstance(given, Tensor) and not given.is_floating_point():
            given = given.long()
        _require("action", given, torch.int64 if discrete else torch.float32, (n, *own), own)
        actions: NDArray[Any] = np.ascontiguousarray(given.expand(n, *own).numpy()).reshape(n)
        actions.flags.writeable = False
        if isinstance(space, spaces.Discrete):
            require_choices(self.spec.id, actions, int(space.n))
        return Views(
            action=actions,
            observation=np.empty((n, *(shape or ())), np.float32),
            reward=np.empty(n, np.float32),
            terminated=np.empty(n, np.bool_),
            truncated=np.empty(n, np.bool_),
            final_observation=np.zeros((n, *(shape or ())), np.float32),
        )


def _require(name: str, given: Any, dtype: torch.dtype, *shapes: tuple[int, ...]) -> None:
    """Reject arrays that compiled code would read out of bounds or as another dtype."""
    if (
        isinstance(given, Tensor)
        and given.shape in shapes
        and given.dtype == dtype
        and given.device.type == "cpu"
        and not given.requires_grad
    ):
        return
    got = type(given).__name__
    if isinstance(given, Tensor):
        grad = " that requires gradients" if given.requires_grad else ""
        got = f"{tuple(given.shape)} {given.dtype} on {given.device}{grad}"
    allowed = " or ".join(map(str, shapes))
    raise EnvError(f"{name}: expected a tensor of shape {allowed}, {dtype} on the CPU, got {got}")
