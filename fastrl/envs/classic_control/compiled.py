"""The compiled loops behind the interface of the tensor programs, for the CPU."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.envs.classic_control import kernels
from fastrl.envs.classic_control.kernel_tasks import Batch, Views
from fastrl.envs.tensor.base import Info, Limited, TensorEnv, Timed
from fastrl.errors import EnvError

S = TypeVar("S", bound=Timed)
P = TypeVar("P", bound=Limited)


class CompiledEnv(TensorEnv[S, P], Generic[S, P]):
    """A tensor environment whose `step` is one compiled loop; equal to rounding, and pure as well.

    For n float32 environments on the CPU with one time limit; neither `torch.func.vmap`,
    `torch.compile` nor gradients see through it.
    """

    def __init__(self, env: TensorEnv[S, P]) -> None:
        """Compile ``env``.

        Raises:
            EnvError: It is differentiable.
        """
        if env.differentiable:
            raise EnvError(f"'{env.spec.id}' is either differentiable or compiled, not both")
        self.spec, self.noise_size = env.spec, env.noise_size
        self.state_type, self.params_type = env.state_type, env.params_type
        self._env = env
        super().__init__()

    def default_params(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> P:
        """See `TensorEnv.default_params`."""
        return self._env.default_params(dtype, device)

    def initial(self, noise: Tensor, params: P) -> S:
        """See `TensorEnv.initial`."""
        return self._env.initial(noise, params)

    def transition(self, state: S, action: Tensor, params: P) -> tuple[S, Tensor, Tensor]:
        """See `TensorEnv.transition`; not compiled."""
        return self._env.transition(state, action, params)

    def observe(self, state: S) -> Any:  # noqa: ANN401
        """See `TensorEnv.observe`."""
        return self._env.observe(state)

    def step(
        self, state: S, action: Tensor, noise: Tensor, params: P
    ) -> tuple[Any, S, Tensor, Tensor, Tensor, Info]:
        """See `TensorEnv.step`; every tensor has the batch axis, ``[n]``.

        Raises:
            EnvError: The state has no batch axis, or is not in float32.
        """
        batch = self._batch(state, noise, params)
        views = self._views(action)
        kernels.step(batch, views, True)
        tensors = [torch.from_numpy(array) for array in views[1:]]
        observation, reward, terminated, truncated, final = tensors
        ended = (terminated | truncated)[:, None]
        after = self.state_type(*map(torch.from_numpy, (*batch.state, batch.time)))
        info = {"final_observation": torch.where(ended, final, observation)}
        return observation, after, reward, terminated, truncated, info

    def _batch(self, state: Any, noise: Tensor, params: Any) -> Batch:  # noqa: ANN401
        *quantities, time = state
        if time.ndim != 1 or quantities[0].dtype != torch.float32:
            raise EnvError(
                f"'{self.spec.id}' compiled steps n environments in float32; got a state of shape "
                f"{list(time.shape)} in {quantities[0].dtype}"
            )
        *values, limit = params
        kind: Any = kernels.BATCHES[self.spec.id]
        batch: Batch = kind(
            params=torch.stack(torch.broadcast_tensors(*values)).numpy(),
            state=torch.stack(quantities).numpy(),
            time=time.clone().numpy(),
            time_limit=int(limit),
            noise=noise.contiguous().numpy(),
            noise_size=self.noise_size,
        )
        return batch

    def _views(self, action: Tensor) -> Views:
        n, shape = len(action), self.spec.observation_space.shape
        dtype = np.int64 if isinstance(self.spec.action_space, spaces.Discrete) else np.float32
        actions: NDArray[Any] = np.ascontiguousarray(action.detach().numpy(), dtype).reshape(n)
        actions.flags.writeable = False
        return Views(
            action=actions,
            observation=np.empty((n, *(shape or ())), np.float32),
            reward=np.empty(n, np.float32),
            terminated=np.empty(n, np.bool_),
            truncated=np.empty(n, np.bool_),
            final_observation=np.zeros((n, *(shape or ())), np.float32),
        )
