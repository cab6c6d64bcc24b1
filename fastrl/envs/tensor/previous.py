"""Tensor environments whose observations have the previous action and reward."""

from __future__ import annotations

import copy
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.previous_step import ACTION, REWARD, ActionVector, spec_with_previous
from fastrl.envs.tensor.base import Bounds, Info, Limited, TensorEnv, Timed, columns

S = TypeVar("S", bound=Timed)
P = TypeVar("P", bound=Limited)


class PreviousState(NamedTuple):
    """A state, and the step that led to it.

    Attributes:
        inner: State of the environment itself.
        action: The vector of the action, see `ActionVector`: k tensors ``[*]`` float32.
        reward: ``[*]`` float32.
    """

    inner: Any
    action: tuple[Tensor, ...]
    reward: Tensor

    @property
    def time(self) -> Tensor:
        """``[*]`` int32: steps since the episode began."""
        time: Tensor = self.inner.time
        return time


class TensorEnvWithPrevious(TensorEnv[PreviousState, P], Generic[S, P]):
    """A tensor environment whose observations have the previous action and reward.

    See `fastrl.envs.previous_step`.

    Args:
        env: The environment, whose actions are one ``Discrete`` or a vector.
    """

    def __init__(self, env: TensorEnv[S, P]) -> None:
        self.params_type, self.state_type = env.params_type, PreviousState
        self.noise_size, self.supports_gradients = env.noise_size, env.supports_gradients
        self._take(env)
        super().__init__(differentiable=env.differentiable)

    def within(self, bounds: Bounds) -> Self:
        """See `TensorEnv.within`."""
        found = copy.copy(self)
        found._take(self._env.within(bounds))
        return found

    def _take(self, env: TensorEnv[S, P]) -> None:
        self._env, self.spec = env, spec_with_previous(env.spec)
        self._size = ActionVector(env.spec.action_space).size

    def default_params(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> P:
        """See `TensorEnv.default_params`."""
        return self._env.default_params(dtype, device)

    def initial(self, noise: Tensor, params: P) -> PreviousState:
        """See `TensorEnv.initial`."""
        inner = self._env.initial(noise, params)
        nothing = torch.zeros_like(inner.time, dtype=torch.float32)
        return PreviousState(inner, (nothing,) * self._size, nothing)

    def transition(
        self, state: PreviousState, action: Tensor, params: P
    ) -> tuple[PreviousState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        inner, reward, terminated = self._env.transition(state.inner, action, params)
        if isinstance(self.spec.action_space, spaces.Discrete):
            vector = [action == choice for choice in range(self._size)]
        else:
            vector = list(action.unbind(-1))
        taken = tuple(each.float() for each in vector)
        return PreviousState(inner, taken, reward.float()), reward, terminated

    def observe(self, state: PreviousState) -> dict[str, Tensor]:
        """See `TensorEnv.observe`."""
        seen = self._env.observe(state.inner)
        own = seen if isinstance(seen, dict) else {"observation": seen}
        return {**own, ACTION: columns(*state.action), REWARD: columns(state.reward)}

    def info(self, state: PreviousState) -> Info:
        """See `TensorEnv.info`."""
        return self._env.info(state.inner)
