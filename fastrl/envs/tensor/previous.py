"""Tensor environments whose observations have the previous action and reward."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.previous_step import ACTION, REWARD, ActionVector, spec_with_previous
from fastrl.envs.tensor.base import Info, P, S, TensorEnv, TensorWrapper, columns


class PreviousState(NamedTuple):
    """A state, and the last action and reward.

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


class TensorEnvWithPrevious(TensorWrapper[PreviousState, P], Generic[S, P]):
    """Adds the previous action and reward to observations; see `fastrl.envs.previous_step`.

    Args:
        env: The environment, whose actions are one ``Discrete`` or a vector.
    """

    def __init__(self, env: TensorEnv[S, P]) -> None:
        super().__init__(env)
        self.state_type = PreviousState

    def _wrap(self, env: TensorEnv[Any, P]) -> None:
        self._env, self.spec = env, spec_with_previous(env.spec)
        self._size = ActionVector(env.spec.action_space).size

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
