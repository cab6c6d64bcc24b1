"""The interface of policies, which custom classes may implement, and how one is built."""

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
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.distributions import ActionBounds
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec, PolicyStep, outputs_of
from fastrl.system import torch_threads

Leaves = Mapping[str, Tensor]
"""Observations or actions: one tensor ``[*, *leaf.shape]`` per leaf of the space, by path."""


class PolicyModel(Protocol):
    """A ``torch.nn.Module`` with these methods; any leading axes ``[*]``, ``[T, B]`` or ``[n]``.

    Randomness comes in as noise, whose last axis has the size that `draw_noise` gives it.
    `ActorCritic` is one; subclassing it and overriding ``forward`` is the shortest way to another.
    It samples in evaluation mode and learns in training mode, where layers distinguish them.

    A policy with a memory has a state ``[n, size] float32`` for n environments; without one its
    size is 0. Samplers keep it between the steps of an episode, and pass that of `initial_state`
    at the first step. The learner passes sequences, ``[L, b, *]`` for L steps of b environments,
    with the state before the first step, and ``keep``, which is False where an episode begins:
    ``keep[t] = not (terminated | truncated)[t-1]``. There `evaluate` restarts at `initial_state`.

    ``mask`` says which actions are valid, ``[*, choices] bool``, with the choices of all discrete
    leaves of the action space one after the other; None where all are. It is not among the leaves
    of ``observation``; see `EnvSpec.action_mask`.

    Attributes:
        outputs: What `act` returns beside actions, by name: a `Rollout` holds each of them as a
            field ``[T, B, *shape]``. A class without the attribute puts out ``log_prob`` and
            ``value``, which PPO and A2C need. With ``value`` the rollout also holds the values of
            its last observation and of the final observations of truncated episodes.
    """

    outputs: Mapping[str, TensorSpec]

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise ``[*shape, noise_size] float32`` that `act` consumes."""

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, size] float32`` in which episodes begin.

        A class without this method counts as a policy without a memory; see `initial_state`.
        """

    def act(
        self,
        observation: Leaves,
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return sampled actions, all ``outputs``, and the next state.

        ``log_prob`` is that of the actions, in nats.
        """

    def evaluate(
        self,
        observation: Leaves,
        action: Leaves,
        state: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value, ``[*]`` each; differentiable.

        Args:
            observation: Per leaf ``[*, *shape]``; ``[L, b, *shape]`` for a policy with a memory.
            action: As `act` returned it.
            state: ``[b, size]``: before the first step of each sequence.
            keep: ``[L, b] bool``; None where no episode begins within a sequence.
            mask: See the class.
        """

    def value(self, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``; only where ``outputs`` has it."""

    def state_after(self, observation: Leaves, state: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the state ``[b, size]`` after a sequence; its arguments are those of `evaluate`.

        A policy with a memory needs it for ``algorithm.recompute_states_each_epoch``, and to learn
        from demonstrations.
        """

    def mode(
        self, observation: Leaves, state: Tensor | None = None, mask: Tensor | None = None
    ) -> PolicyStep:
        """Return the most probable actions, and the next state; ``outputs`` may be empty."""

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors that are published to the workers; of ``torch.nn.Module``."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take published parameters; of ``torch.nn.Module``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what the optimiser changes; of ``torch.nn.Module``."""

    def to(self, device: torch.device) -> Any:
        """Move to a device, in place; of ``torch.nn.Module``."""


_MOST_NAMES = 6
_METHODS = ("draw_noise", "act", "evaluate", "mode")


@torch_threads(1)
def build_model(
    env_spec: EnvSpec,
    config: ModelConfig,
    action_bounds: ActionBounds = "clip",
    own_class: Any = None,
) -> PolicyModel:
    """Build the policy that a configuration asks for.

    Its initial weights do not depend on the number of torch's threads.

    Args:
        env_spec: What the policy observes and does.
        config: The network; ``class_path`` names a custom class, which is then called with
            ``env_spec`` and ``config.kwargs``.
        action_bounds: See `ActionDistribution`; a custom class gets it only through its kwargs.
        own_class: The class that ``class_path`` names, if it has been imported already.

    Raises:
        ConfigError: The custom class cannot be imported or built, does not take its arguments, or
            lacks a method.
        SpaceError: The action space is not supported.
    """
    instance("env_spec", env_spec, EnvSpec)
    instance("config", config, ModelConfig)
    one_of("action_bounds", action_bounds, get_args(ActionBounds))
    if config.class_path is None:
        return ActorCritic(env_spec, config, action_bounds)
    where = f"model.class_path '{config.class_path}'"
    own_class = check_model_class(config, own_class)
    model = registry.call(own_class, where, env_spec, **config.kwargs)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where} must be a torch.nn.Module, got {type(model).__name__}")
    needed = (*_METHODS, "value") if "value" in outputs_of(model) else _METHODS
    missing = [name for name in needed if not callable(getattr(model, name, None))]
    if missing:
        raise ConfigError(f"{where} lacks the methods {', '.join(missing)} of PolicyModel")
    if env_spec.action_mask is not None:
        _require_mask(model, where, env_spec)
    return cast(PolicyModel, model)


def _require_mask(model: nn.Module, where: str, env_spec: EnvSpec) -> None:
    """Reject a policy whose methods do not take the mask of an environment that has one."""
    for name in ("act", "evaluate", "mode"):
        parameters = inspect.signature(getattr(model, name)).parameters.values()
        if not any(each.name == "mask" or each.kind is each.VAR_KEYWORD for each in parameters):
            raise ConfigError(
                f"{where}.{name} takes no mask, and '{env_spec.id}' has masks of valid actions; "
                "add the parameter, or set env.action_mask=off"
            )


def check_model_class(config: ModelConfig, own_class: Any = None) -> Any:
    """Return the class that ``class_path`` names after a check of its arguments; None for none.

    Args:
        config: The network.
        own_class: The class, if it has been imported already.

    Raises:
        ConfigError: It cannot be imported, or does not take its arguments.
    """
    if config.class_path is None:
        return None
    if own_class is None:
        own_class = registry.chosen("model", config.class_path, "model.class_path")
    problem = f"model.class_path '{config.class_path}' does not take model.kwargs"
    registry.check_arguments(own_class, problem, "env_spec", **config.kwargs)
    return own_class


def initial_state(model: PolicyModel, n: int) -> Tensor:
    """Return the states ``[n, size] float32`` in which n episodes begin; size 0 without memory."""
    own = getattr(model, "initial_state", None)
    return torch.zeros(n, 0) if own is None else own(n)


def state_size(model: PolicyModel) -> int:
    """Return the size S of a policy's state; 0 without a memory.

    Raises:
        ConfigError: ``initial_state`` does not return states ``[n, S] float32``.
    """
    found, n = initial_state(model, 2), 2
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == n:
        if found.dtype == torch.float32:
            return found.shape[1]
        got = str(found.dtype).removeprefix("torch.")
    else:
        got = str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__
    who = type(model).__name__
    raise ConfigError(f"{who}.initial_state({n}) must return [{n}, size] float32, got {got}")


def load_parameters(model: PolicyModel, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load parameters and buffers into a model.

    Args:
        model: The model.
        state_dict: By name.
        what: Where they come from, for the error.

    Raises:
        FastrlError: They are those of another model; names the first tensors that differ.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    if wanted != found:
        wrong = [key for key in sorted(wanted | found) if wanted.get(key) != found.get(key)]
        more = ", …" if len(wrong) > _MOST_NAMES else ""
        listed = ", ".join(_difference(key, wanted, found) for key in wrong[:_MOST_NAMES])
        raise FastrlError(f"{what} is of another model: {listed}{more}")
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, KeyError) as error:
        raise FastrlError(f"{what} is of another model: {cause(error)}") from error


def _difference(
    key: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    if key not in found:
        return f"{key} is missing"
    if key not in wanted:
        return f"{key} is not of this model"
    return f"{key} is {found[key]}, not {wanted[key]}"


@contextmanager
def sampling_mode(model: PolicyModel) -> Iterator[None]:
    """Let a policy act in evaluation mode, as samplers do, and restore its mode afterwards."""
    before = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
