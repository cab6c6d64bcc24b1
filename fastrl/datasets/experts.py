"""Policies that demonstrate: trained ones at their most probable actions, and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrl.arguments import brief
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.errors import FastrlError
from fastrl.models.policy import Leaves, PolicyModel, initial_state
from fastrl.spaces import TensorSpec, flatten, leaves, unflatten
from fastrl.spec import EnvSpec, PolicyStep, only_given


class Demonstrator(nn.Module):
    """A policy for samplers that puts out nothing but actions and learns nothing.

    Attributes:
        outputs: Empty.
    """

    outputs: Mapping[str, TensorSpec] = {}

    def initial_state(self, n: int) -> Tensor:
        """Return no states, ``[n, 0]``."""
        return torch.zeros(n, 0)

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return no noise, ``[*shape, 0]``."""
        return torch.zeros(*shape, 0, device=device)

    def act(
        self,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return the actions and the next state."""
        return self.mode(observation, state, mask)

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the actions and the next state."""
        raise NotImplementedError

    def evaluate(
        self,
        observation: Leaves,
        action: Leaves,
        state: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Raise a `FastrlError`."""
        raise FastrlError("a policy that demonstrates has no probabilities")

    def value(self, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Raise a `FastrlError`."""
        raise FastrlError("a policy that demonstrates has no values")

    def state_after(self, observation: Leaves, state: Tensor, keep: Tensor | None = None) -> Tensor:
        """Raise a `FastrlError`."""
        raise FastrlError("a policy that demonstrates learns from no sequences")


class MostProbable(Demonstrator):
    """The most probable actions of a policy.

    Args:
        model: The policy.
    """

    def __init__(self, model: PolicyModel) -> None:
        super().__init__()
        self.model = model

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S]`` of the policy."""
        return initial_state(self.model, n)

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the policy's."""
        step = self.model.mode(observation, **only_given(state=state, mask=mask))
        return PolicyStep(step.action, {}, step.state)


class FunctionPolicy(Demonstrator):
    """A function from the observation of one environment to its action.

    Observations are those of gymnasium, with the mask of valid actions where there is one, and
    actions those that the environment accepts.

    Args:
        env_spec: The environment.
        function: Called with one observation after the other.
        action_bounds: How samplers keep actions inside a bounded ``Box``.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        function: Callable[[Any], Any],
        action_bounds: ActionBounds = "clip",
    ) -> None:
        super().__init__()
        self._env_spec, self._function = env_spec, function
        self._converter = ActionConverter(env_spec.action_space, action_bounds)
        self._observed = leaves(env_spec.observation_space)

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the function's actions.

        Raises:
            FastrlError: The function returned something that is not an action.
        """
        spec = self._env_spec
        given = dict(observation)
        if mask is not None and spec.action_mask is not None:
            given[spec.action_mask] = mask
        arrays = {
            path: given[path].numpy().astype(leaf.dtype) for path, leaf in self._observed.items()
        }
        chosen = [
            self._action(unflatten(spec.observation_space, {k: v[row] for k, v in arrays.items()}))
            for row in range(len(next(iter(arrays.values()))))
        ]
        rows = tuple(np.stack(column) for column in zip(*chosen, strict=True))
        sampled = map(torch.from_numpy, self._converter.sampled(rows))
        return PolicyStep(dict(zip(spec.action, sampled, strict=True)), {}, state)

    def _action(self, observation: Any) -> list[Any]:
        """Return the leaves of an action."""
        spec = self._env_spec
        action = self._function(observation)
        try:
            found = [np.asarray(leaf) for leaf in flatten(spec.action_space, action)]
        except (TypeError, ValueError, KeyError, IndexError):
            found = []
        wanted = [stored.shape for stored in spec.action.values()]
        if [leaf.shape for leaf in found] != wanted or any(
            leaf.dtype.kind not in "biuf" for leaf in found
        ):
            name = getattr(self._function, "__name__", "the policy")
            raise FastrlError(
                f"{name} returned {brief(action)}, which is not an action of {spec.action_space}"
            )
        return found
