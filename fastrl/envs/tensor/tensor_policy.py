"""Policies as pure functions of their weights, for rollouts on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fastrl.arguments import instance
from fastrl.errors import SpaceError
from fastrl.spec import EnvSpec, PolicyStep, only_given, outputs_of

Leaves = Mapping[str, Tensor]
"""Observations or actions: one tensor ``[*, *leaf.shape]`` per leaf of the space, by path."""
Weights = Mapping[str, Tensor] | None


class TensorPolicy(Protocol):
    """A policy with random numbers and weights as arguments.

    Like a `fastrl.models.PolicyModel` it may declare further results in ``outputs``;
    without the attribute they are ``log_prob`` and ``value``. A policy with a memory also has
    the method ``initial_state(weights, n)``, which returns states ``[n, S] float32``, and is given
    the state before each step.
    """

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise ``[*shape, …] float32`` for `act`."""

    def act(
        self,
        weights: Weights,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return actions by leaf, the outputs ``[*, *shape]``, and the next state.

        The mask, ``[*, choices] bool``, is passed only if the environment has masks.
        """

    def value(self, weights: Weights, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``; called only if ``outputs`` has it."""


class ModulePolicy:
    """A ``torch.nn.Module`` with the methods ``draw_noise``, ``act`` and ``value``.

    The weights of each call replace its own.
    """

    def __init__(self, model: Any) -> None:
        """Use ``model``, for instance a `fastrl.models.policy.PolicyModel`."""
        self._model = model
        self._call = _MethodCall(model)
        self.outputs = outputs_of(model)

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """See `TensorPolicy.draw_noise`."""
        return cast(Tensor, self._model.draw_noise(shape, generator, device))

    def initial_state(self, weights: Weights, n: int) -> Tensor:
        """Return the states ``[n, S]`` in which episodes begin; S = 0 without a memory."""
        if not hasattr(self._model, "initial_state"):
            return torch.zeros(n, 0)
        return cast(Tensor, self._with(weights, "initial_state", n))

    def act(
        self,
        weights: Weights,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """See `TensorPolicy.act`; without weights, the module's own are used."""
        further = only_given(state=state, mask=mask)
        return cast(PolicyStep, self._with(weights, "act", observation, noise, **further))

    def value(self, weights: Weights, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """See `TensorPolicy.value`; without weights, the module's own are used."""
        return cast(Tensor, self._with(weights, "value", observation, **only_given(state=state)))

    def _with(self, weights: Weights, *arguments: Any, **given: Any) -> Any:
        if weights is None:
            return self._call(*arguments, **given)
        own = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(self._call, own, arguments, given)


class RandomPolicy:
    """Draws every valid action with equal probability; its value is 0."""

    def __init__(self, spec: EnvSpec) -> None:
        """Draw actions of ``spec.action_space``.

        Raises:
            SpaceError: The action space is neither ``Discrete`` nor a bounded ``Box``.
        """
        space = instance("spec", spec, EnvSpec).action_space
        if isinstance(space, spaces.Discrete):
            self._choices = int(space.n)
            self._shape: tuple[int, ...] = ()
        elif isinstance(space, spaces.Box) and space.is_bounded():
            self._choices, self._shape = 0, tuple(space.shape)
            self._low, self._width = _plain(space.low), _plain(space.high - space.low)
            self._log_prob = -float(np.log(space.high - space.low).sum())
        else:
            raise SpaceError(f"cannot draw from {space}; it must be Discrete or a bounded Box")

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """See `TensorPolicy.draw_noise`: uniform in [0, 1), ``[*shape, *action shape]``."""
        return torch.rand(*shape, *self._shape, generator=generator, device=device)

    def act(
        self,
        weights: Weights,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """See `TensorPolicy.act`; weights and observation are ignored."""
        if mask is not None:
            until = mask.cumsum(-1)
            count = until[..., -1]
            # Just below 1 the product may round up to the count.
            nth = torch.minimum((noise * count).floor(), count - 1)
            action = (until > nth.unsqueeze(-1)).to(torch.uint8).argmax(-1)
            log_prob = -count.log()
        elif self._choices:
            action = (noise * self._choices).long()
            log_prob = torch.full_like(noise, -math.log(self._choices))
        else:
            low, width = self._low, self._width
            if isinstance(low, Tensor) or isinstance(width, Tensor):
                low, width = (torch.as_tensor(each, device=noise.device) for each in (low, width))
            action = low + width * noise
            log_prob = noise.new_full(noise.shape[: noise.ndim - len(self._shape)], self._log_prob)
        value = torch.zeros_like(log_prob)
        return PolicyStep({"": action}, {"log_prob": log_prob, "value": value})

    def value(self, weights: Weights, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Return 0, ``[n]``."""
        leaf = next(iter(observation.values()))
        return leaf.new_zeros(leaf.shape[:-1])


def _plain(bound: NDArray[np.floating[Any]]) -> Tensor | float:
    """Return a bound as a number if all elements are equal, which needs no copy to a device."""
    return float(bound.flat[0]) if np.ptp(bound) == 0 else torch.from_numpy(bound)


class _MethodCall(nn.Module):
    """Calls methods of a module; `functional_call` supports only ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any, **given: Any) -> Any:
        return getattr(self.model, method)(*arguments, **given)
