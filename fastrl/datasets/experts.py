"""Experts: policies that only act, from trained policies or functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrl.arguments import brief
from fastrl.datasets.demonstrations import are_allowed
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.rows import reset_values
from fastrl.errors import USERS_FAILURES, ConfigError, EnvError, FastrlError, cause
from fastrl.models.policy import Leaves, PolicyModel, initial_state, state_size
from fastrl.spaces import TensorSpec, flatten, leaves, unflatten
from fastrl.spec import EnvSpec, PolicyStep, only_given


class Demonstrator(nn.Module):
    """A policy for samplers that returns only actions and does not learn.

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

    def evaluate(self, *_: Any, **__: Any) -> Any:
        """Raise a `FastrlError`: there are neither probabilities nor values to learn from."""
        raise FastrlError("a policy that demonstrates learns nothing")

    value = state_after = evaluate


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
        """Return the policy's most probable actions and the next state."""
        step = self.model.mode(observation, **only_given(state=state, mask=mask))
        return PolicyStep(step.action, {}, step.state)


class FunctionPolicy(Demonstrator):
    """A function from the observation of one environment to its action.

    Observations are those of gymnasium, with the mask of valid actions if there is one, and
    actions must be accepted by the environment.

    Attributes:
        env_spec: The environment.

    Args:
        env_spec: The environment.
        function: Called with one observation at a time.
        action_bounds: ``clip`` or ``squash``: the samplers' conversion of bounded ``Box`` actions.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        function: Callable[[Any], Any],
        action_bounds: ActionBounds = "clip",
    ) -> None:
        super().__init__()
        self.env_spec, self._function = env_spec, function
        self._converter = ActionConverter(env_spec.action_space, action_bounds)
        self._observed = leaves(env_spec.observation_space)

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the function's actions.

        Raises:
            FastrlError: The function returned something that is not an action, or an invalid one.
        """
        spec = self.env_spec
        given = dict(observation)
        if mask is not None and spec.action_mask is not None:
            given[spec.action_mask] = mask
        arrays = {
            path: given[path].cpu().numpy().astype(leaf.dtype)
            for path, leaf in self._observed.items()
        }
        chosen = [
            self._action(unflatten(spec.observation_space, {k: v[row] for k, v in arrays.items()}))
            for row in range(len(next(iter(arrays.values()))))
        ]
        device = next(iter(observation.values())).device
        sampled = self._sampled(chosen, None if mask is None else mask.cpu())
        return PolicyStep({path: leaf.to(device) for path, leaf in sampled.items()}, {}, state)

    def check(self, observation: Any) -> None:
        """Call the function with the observation of one environment.

        Raises:
            FastrlError: It returned something that is not an action, or an invalid one.
        """
        key = self.env_spec.action_mask
        mask = None if key is None else torch.as_tensor(observation[key])[None] != 0
        self._sampled([self._action(observation)], mask)

    def _sampled(self, chosen: list[list[Any]], mask: Tensor | None) -> dict[str, Tensor]:
        """Return actions of n environments as a policy samples them, per leaf ``[n, *shape]``."""
        rows = tuple(np.stack(column) for column in zip(*chosen, strict=True))
        sampled = map(torch.from_numpy, self._converter.sampled(rows))
        action = dict(zip(self.env_spec.action, sampled, strict=True))
        if mask is not None and not are_allowed(self.env_spec, action, mask).all():
            raise FastrlError(f"{self._name} returned an action that the mask forbids")
        return action

    @property
    def _name(self) -> str:
        name: str = getattr(self._function, "__name__", "the policy")
        return name

    def _action(self, observation: Any) -> list[Any]:
        """Return the leaves of an action."""
        spec = self.env_spec
        action = self._function(observation)
        try:
            found = [np.asarray(leaf) for leaf in flatten(spec.action_space, action)]
        except (TypeError, ValueError, KeyError, IndexError):
            found = []
        wanted = [stored.shape for stored in spec.action.values()]
        if [leaf.shape for leaf in found] != wanted or not all(
            leaf.dtype.kind in "biuf" and np.isfinite(leaf).all() for leaf in found
        ):
            raise FastrlError(
                f"{self._name} returned {brief(action)}, which is not an action of "
                f"{spec.action_space}"
            )
        return found


def try_function(policy: FunctionPolicy, where: str, factory: EnvFactory) -> None:
    """Call a function with the first observation of an environment, before workers run it.

    Args:
        policy: The function.
        where: Option and path of the function, for errors.
        factory: Builds the environment.

    Raises:
        ConfigError: The function raised, or returned something that is not an action.
    """
    try:
        env = factory.with_masks_of(policy.env_spec).single()
    except EnvError:
        return  # The workers report failures; a vector environment has no single environment.
    with closing(env):
        observation, _ = reset_values(env.reset(seed=0), f"'{factory.name}'")
    try:
        policy.check(observation)
    except FastrlError as error:
        raise ConfigError(f"{where}: {error}") from error
    except USERS_FAILURES as error:
        raise ConfigError(f"{where} raised {cause(error)}") from error


class AsPlayed(Demonstrator):
    """The actions of another policy as its environment would execute them.

    Both policies may convert bounded ``Box`` actions in different ways.

    Args:
        expert: The policy.
        env_spec: The environment.
        bounds: ``clip`` or ``squash`` for the expert's actions.
        own_bounds: ``clip`` or ``squash`` for the actions of the policy that learns from it.
    """

    def __init__(
        self,
        expert: Demonstrator,
        env_spec: EnvSpec,
        bounds: ActionBounds,
        own_bounds: ActionBounds,
    ) -> None:
        super().__init__()
        self.expert, self._env_spec = expert, env_spec
        self._played = ActionConverter(env_spec.action_space, bounds)
        self._own = ActionConverter(env_spec.action_space, own_bounds)
        self._is_same = not any(spec.dtype.is_floating_point for spec in env_spec.action.values())

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S]`` of the expert."""
        return self.expert.initial_state(n)

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the expert's actions as they are executed, and the next state."""
        step = self.expert.mode(observation, state, mask)
        if self._is_same:
            return step
        spec = self._env_spec
        rows = tuple(step.action[path].cpu().numpy() for path in spec.action)
        played = [np.asarray(leaf) for leaf in flatten(spec.action_space, self._played.batch(rows))]
        device = next(iter(step.action.values())).device
        own = (torch.from_numpy(leaf).to(device) for leaf in self._own.sampled(tuple(played)))
        return step._replace(action=dict(zip(spec.action, own, strict=True)))


class Mixture(Demonstrator):
    """A mixture of a learning policy and an expert: each chooses a share of the actions.

    In every step a random number decides between them.

    Attributes:
        outputs: The expert's action in each step, named by `label_names`.
        learner: The policy.
        expert: The expert.

    Args:
        env_spec: The environment.
        learner: See the attribute.
        expert: See the attribute.
        share: Share of the steps in which the expert acts.
    """

    def __init__(
        self, env_spec: EnvSpec, learner: PolicyModel, expert: Demonstrator, share: float
    ) -> None:
        super().__init__()
        self.learner, self.expert = learner, expert
        self.share: Tensor
        self.register_buffer("share", torch.tensor(share))
        self._own_size = state_size(learner)
        self._label_of = dict(zip(env_spec.action, label_names(env_spec), strict=True))
        self.outputs = {self._label_of[path]: spec for path, spec in env_spec.action.items()}

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the learner's noise, and a uniform number in ``[0, 1)`` that decides who acts."""
        drawn = torch.rand(*shape, 1, generator=generator, device=device)
        return torch.cat([self.learner.draw_noise(shape, generator, device), drawn], -1)

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S]``: the policy's state, then the expert's."""
        return torch.cat([initial_state(self.learner, n), self.expert.initial_state(n)], 1)

    def act(
        self,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return the actions, the expert's actions as outputs, and the next states of both."""
        own_state, their_state = self._split(state)
        shown = self.expert.mode(observation, their_state, mask)
        given = only_given(state=own_state, mask=mask)
        own = self.learner.act(observation, noise[..., :-1], **given)
        is_experts = noise[..., -1] < self.share
        action = {
            path: torch.where(
                is_experts.view(*is_experts.shape, *[1] * (leaf.ndim - is_experts.ndim)),
                shown.action[path],
                leaf,
            )
            for path, leaf in own.action.items()
        }
        labels = {label: shown.action[path] for path, label in self._label_of.items()}
        after = [each.state for each in (own, shown) if each.state is not None]
        return PolicyStep(action, labels, torch.cat(after, -1) if after else None)

    def _split(self, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the states of the policy and of the expert; None without a memory."""
        if state is None:
            return None, None
        own, theirs = state.tensor_split([self._own_size], -1)
        return own if own.shape[-1] else None, theirs if theirs.shape[-1] else None


def label_names(env_spec: EnvSpec) -> list[str]:
    """Return the names of the fields with an expert's actions, one for each leaf."""
    return [f"expert_action_{number}" for number in range(len(env_spec.action))]
