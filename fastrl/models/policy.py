"""What a policy must offer to be sampled with and learnt; your own class may offer it too."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from fastrl import registry
from fastrl.arguments import instance, one_of
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, FastrlError, cause
from fastrl.models.action_parts import ActionBounds
from fastrl.models.actor_critic import ActorCritic
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec, PolicyStep, outputs_of

Leaves = Mapping[str, Tensor]
"""Observations or actions: one tensor ``[*, *leaf.shape]`` per leaf of the space, by path."""


class PolicyModel(Protocol):
    """A ``torch.nn.Module`` with these methods; any leading axes ``[*]``, ``[T, B]`` or ``[n]``.

    Randomness comes in as noise, whose last axis is what `draw_noise` makes it. `ActorCritic`
    is one; subclassing it and overriding ``forward`` is the shortest way to another. It samples
    in evaluation mode and learns in training mode, where layers tell them apart.

    ``state``, ``keep`` and ``mask`` are reserved for policies with a memory and for masks of
    actions; samplers and learners leave them out so far. ``state`` is ``[*, size] float32``, and
    ``keep[t] = not (terminated | truncated)[t-1]`` says where it is carried on. A policy without
    a memory has a state of size 0.

    Attributes:
        outputs: What `act` returns beside actions, by name: a `Rollout` holds each of them as a
            field ``[T, B, *shape]``. A class without the attribute puts out ``log_prob`` and
            ``value``, which PPO and A2C need. With ``value`` the rollout's last observation and
            the final observations of truncated episodes are valued, too.
    """

    outputs: Mapping[str, TensorSpec]

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise ``[*shape, noise_size] float32`` that `act` consumes."""
        ...

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, size] float32`` in which episodes begin.

        A class without this method counts as a policy without a memory; see `initial_state`.
        """
        ...

    def act(
        self,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Leaves | None = None,
    ) -> PolicyStep:
        """Return sampled actions and all ``outputs``; ``log_prob`` is theirs, in nats."""
        ...

    def evaluate(
        self,
        observation: Leaves,
        action: Leaves,
        state: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Leaves | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value, ``[*]`` each; differentiable."""
        ...

    def value(self, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``; only where ``outputs`` has it."""
        ...

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Leaves | None = None
    ) -> dict[str, Tensor]:
        """Return the most probable actions."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is published to the workers; of ``torch.nn.Module``."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Take published parameters; of ``torch.nn.Module``."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what the optimiser changes; of ``torch.nn.Module``."""
        ...

    def to(self, device: torch.device) -> Any:  # noqa: ANN401
        """Move to a device, in place; of ``torch.nn.Module``."""
        ...


_NAMES_TOLD = 6
_METHODS = ("draw_noise", "act", "evaluate", "mode")


def build_model(
    env_spec: EnvSpec,
    config: ModelConfig,
    action_bounds: ActionBounds = "clip",
    own_class: Any = None,  # noqa: ANN401
) -> PolicyModel:
    """Build the policy that a configuration asks for.

    Args:
        env_spec: What the policy observes and does.
        config: The network; ``class_path`` names your own class, which is then called with
            ``env_spec`` and ``config.kwargs``.
        action_bounds: See `ActionDistribution`; your own class gets it only through its kwargs.
        own_class: What ``class_path`` names, where that is known already.

    Raises:
        ConfigError: Your own class cannot be imported or built, does not take its arguments, or
            lacks a method.
        SpaceError: The action space is not supported.
    """
    instance("env_spec", env_spec, EnvSpec)
    instance("config", config, ModelConfig)
    one_of("action_bounds", action_bounds, get_args(ActionBounds))
    if config.class_path is None:
        return ActorCritic(env_spec, config, action_bounds)
    where = f"model.class_path '{config.class_path}'"
    if own_class is None:
        own_class = registry.chosen("model", config.class_path, "model.class_path")
    try:
        inspect.signature(own_class).bind(env_spec, **config.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} does not take model.kwargs: {error}") from error
    model = registry.call(own_class, where, env_spec, **config.kwargs)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where} must be a torch.nn.Module, got {type(model).__name__}")
    needed = (*_METHODS, "value") if "value" in outputs_of(model) else _METHODS
    missing = [name for name in needed if not callable(getattr(model, name, None))]
    if missing:
        raise ConfigError(f"{where} lacks the methods {', '.join(missing)} of PolicyModel")
    return cast(PolicyModel, model)


def initial_state(model: PolicyModel, n: int) -> Tensor:
    """Return the states ``[n, size] float32`` in which n episodes begin; size 0 without memory."""
    own = getattr(model, "initial_state", None)
    return torch.zeros(n, 0) if own is None else own(n)


def load_parameters(model: PolicyModel, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load parameters and buffers into a model.

    Args:
        model: Takes them.
        state_dict: By name.
        what: Where they come from, for the error.

    Raises:
        FastrlError: They are another model's; names the first tensors that differ.
    """
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    if own != found:
        wrong = [key for key in sorted(own | found) if own.get(key) != found.get(key)]
        more = ", …" if len(wrong) > _NAMES_TOLD else ""
        listed = ", ".join(_difference(key, own, found) for key in wrong[:_NAMES_TOLD])
        raise FastrlError(f"{what} is of another model: {listed}{more}")
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, KeyError) as error:
        raise FastrlError(f"{what} is of another model: {cause(error)}") from error


def _difference(
    key: str, own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    if key not in found:
        return f"{key} is missing"
    if key not in own:
        return f"{key} is not of this model"
    return f"{key} is {found[key]}, not {own[key]}"


@contextmanager
def sampling_mode(model: PolicyModel) -> Iterator[None]:
    """Let a policy act in evaluation mode, as samplers do, and leave it as it was."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
