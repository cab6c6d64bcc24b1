"""The interface of policies, the built-in actor-critic, and loading; layers are in `networks`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, get_args

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastrl import registry
from fastrl.arguments import instance, one_of
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, FastrlError, cause
from fastrl.models.distributions import ActionBounds, ActionDistribution
from fastrl.models.images import image_layouts
from fastrl.models.networks import Body, RunningNormalizer, normalizer, orthogonal, require_memory
from fastrl.models.recurrent import Core, RecurrentCore
from fastrl.spaces import TensorSpec, leaves
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, PolicyStep, outputs_of
from fastrl.system import torch_threads

Leaves = Mapping[str, Tensor]
"""Observations or actions: one tensor ``[*, *leaf.shape]`` per leaf of the space, by path."""

_ACTOR_GAIN = 0.01
_CRITIC_GAIN = 1.0
_MOST_NAMES = 6
_METHODS = ("draw_noise", "act", "evaluate", "mode")


class PolicyModel(Protocol):
    """A ``torch.nn.Module`` with these methods; any leading axes ``[*]``, ``[T, B]`` or ``[n]``.

    Randomness is passed as noise of the shape that `draw_noise` returns.
    `ActorCritic` is one; the shortest way to another is a subclass with its own ``forward``.
    It samples in evaluation mode and learns in training mode, where layers distinguish them.

    A policy with a memory has a state ``[n, size] float32`` for n environments; otherwise its
    size is 0. Samplers keep it between the steps of an episode, and pass `initial_state`
    at the first step. The learner passes sequences, ``[L, b, *]`` for L steps of b environments,
    with the state before the first step, and ``keep``, which is False where an episode begins:
    ``keep[t] = not (terminated | truncated)[t-1]``. There `evaluate` restarts at `initial_state`.

    ``mask`` marks the valid actions, ``[*, choices] bool``, with the choices of all discrete leaves
    of the action space one after the other; None if all are valid. It is not among the leaves of
    ``observation``; see `EnvSpec.action_mask`.

    Attributes:
        outputs: Specs of further results of `act`, by name: a `Rollout` contains each as a
            field ``[T, B, *shape]``. A class without the attribute returns ``log_prob`` and
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

        ``log_prob`` is the log-probability of the actions, in nats.
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
            action: Actions as `act` returned them.
            state: ``[b, size]``: state before the first step of each sequence.
            keep: ``[L, b] bool``; None if no episode begins within a sequence.
            mask: See the class.
        """

    def value(self, observation: Leaves, state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``; called only if ``outputs`` has it."""

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
        """Load published parameters; of ``torch.nn.Module``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that the optimiser changes; of ``torch.nn.Module``."""

    def to(self, device: torch.device) -> Any:
        """Move to a device, in place; of ``torch.nn.Module``."""


class ActorCritic(nn.Module):
    """Policy and value function over any supported spaces; a `PolicyModel`.

    Observations and actions are mappings from leaf path to ``[*, *leaf.shape]``, with the same
    leading axes ``[*]`` everywhere: ``[n]``, ``[T, B]`` or any others.

    With ``recurrent`` it has a memory: a core between each body and its heads. Its state is
    the state of the policy's core, followed by that of a separate value body's core. Without
    it, the state has size 0, and ``state`` and ``keep`` are ignored.

    `mode`, `act` and `value` take tensors by leaf path, ``{"": tensor}`` for a plain space. They
    return actions of the distribution: with ``clip`` continuous ones are not yet clipped to the
    bounds of their space, and discrete ones count from 0, whatever the space's ``start`` is.
    `fastrl.envs.actions.ActionConverter` converts them to actions of the environment.

    Attributes:
        observation_specs: Shape and dtype of each observation leaf that it reads, by path; see
            `EnvSpec.inputs`.
        outputs: Specs of further results of `act`, by name; a subclass may add some.
        actor_core: The memory behind the policy's body; None without one.
        critic_core: The memory behind a separate value body; None without one.

    Args:
        env_spec: Gives the spaces.
        config: Sizes, activation and initialisation; see `Body` for what they apply to. With
            ``shared_body`` the value is a second head on the actor's body, otherwise it has a
            separate body. ``auto`` shares the body if an observation is an image.
        action_bounds: See `ActionDistribution`.

    Raises:
        ConfigError: The value has sizes but no separate body; or a layer does not fit into memory.
        SpaceError: A space is not supported.
    """

    outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE

    def __init__(
        self, env_spec: EnvSpec, config: ModelConfig, action_bounds: ActionBounds = "clip"
    ) -> None:
        super().__init__()
        instance("env_spec", env_spec, EnvSpec)
        instance("config", config, ModelConfig)
        space = env_spec.input_space
        self.observation_specs = env_spec.inputs
        _require_memory_for_actions(env_spec, config)
        layouts = image_layouts(space, config)
        self.normalizers = nn.ModuleList(
            normalizer(leaf, layouts[path], config.normalize_observations)
            for path, leaf in leaves(space).items()
        )
        self.distribution = ActionDistribution(
            env_spec,
            action_bounds,
            config.log_std_init,
            log_std_bounds=config.log_std_bounds,
            state_std=config.log_std == "state",
        )
        self.actor_body = Body(space, config)
        is_shared = config.shared_body
        if is_shared == "auto":
            is_shared = any(layouts.values())
        if is_shared and config.critic_hidden_sizes is not None:
            raise ConfigError(
                "model.critic_hidden_sizes: policy and value share a body, since an observation "
                "is an image; set model.shared_body=false, or leave it out"
            )
        self.critic_body = None if is_shared else Body(space, config, is_critic=True)
        self.actor_core = self.build_core(self.actor_body.num_features, config)
        self.critic_core = None
        if self.critic_body is not None:
            self.critic_core = self.build_core(self.critic_body.num_features, config)
        actor = self.actor_core or self.actor_body
        critic = actor if self.critic_body is None else self.critic_core or self.critic_body
        self.actor_head = nn.Linear(actor.num_features, self.distribution.num_parameters)
        self.critic_head = nn.Linear(critic.num_features, 1)
        if config.orthogonal_init:
            orthogonal(self.actor_head, _ACTOR_GAIN)
            orthogonal(self.critic_head, _CRITIC_GAIN)
        self.distribution.start_log_std(self.actor_head.bias)

    def build_core(self, num_features: int, config: ModelConfig) -> Core | None:
        """Return a memory behind a body, or None; a subclass may return a custom one.

        Args:
            num_features: Width of the body's output.
            config: The network.
        """
        return None if config.recurrent is None else RecurrentCore(num_features, config)

    def forward(
        self,
        observation: Mapping[str, Tensor],
        state: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the distribution's parameters ``[*, P]`` and the value ``[*]``.

        A policy with a memory also returns the next state. Only then are ``state`` and ``keep``
        passed; see `evaluate`.
        """
        leading, inputs = self._inputs(observation)
        features = self.actor_body(inputs)
        critic = features if self.critic_body is None else self.critic_body(inputs)
        after = []
        if self.has_memory:
            states = self._core_states(state)
            features, actor_after = _remember(self.actor_core, leading, features, states[0], keep)
            after = [actor_after]
            if self.critic_body is None:
                critic = features
            else:
                critic, critic_after = _remember(self.critic_core, leading, critic, states[1], keep)
                after = [torch.cat([actor_after, critic_after], 1)]
        parameters: Tensor = self.actor_head(features)
        if len(leading) != 1:
            parameters = parameters.reshape(*leading, -1)
        return parameters, self.critic_head(critic).reshape(leading), *after

    @property
    def cores(self) -> list[Core]:
        """The memories, in the order of their states; empty if there are none."""
        return [core for core in (self.actor_core, self.critic_core) if core is not None]

    @property
    def has_memory(self) -> bool:
        """Whether the state has a size other than 0."""
        return self.actor_core is not None or self.critic_core is not None

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise ``[*shape, noise_size] float32`` that `act` consumes."""
        return self.distribution.draw_noise(shape, generator, device)

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, size] float32`` in which episodes begin."""
        return torch.cat([core.initial_state(n) for core in self.cores] or [torch.zeros(n, 0)], 1)

    def act(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return the actions that noise selects, with ``log_prob`` and ``value``, ``[*]`` each."""
        parameters, value, *after = self(observation, *self._memory(state))
        action = self.distribution.sample(parameters, noise, mask)
        log_prob = self.distribution.log_prob(parameters, action, mask)
        return PolicyStep(action, {"log_prob": log_prob, "value": value}, *after)

    def evaluate(
        self,
        observation: Mapping[str, Tensor],
        action: Mapping[str, Tensor],
        state: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probability of actions, the entropy and the value, ``[*]`` each.

        Args:
            observation: Per leaf ``[*, *shape]``; ``[L, b, *shape]`` with a memory.
            action: Actions as `act` returned them.
            state: ``[b, size]`` before the first step; without a memory it is ignored.
            keep: ``[L, b] bool``: False where an episode begins; None if none begins.
            mask: ``[*, choices] bool``: valid actions; None for all.

        Raises:
            FastrlError: The policy has a memory, but ``state`` is None.
        """
        parameters, value = self(observation, *self._memory(state, keep))[:2]
        return *self.distribution.evaluate(parameters, action, mask), value

    def value(self, observation: Mapping[str, Tensor], state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``, without computing the policy if bodies are separate."""
        if type(self).forward is not ActorCritic.forward:
            # A custom forward may compute the value in another way.
            custom: Tensor = self(observation, *self._memory(state))[1]
            return custom
        leading, inputs = self._inputs(observation)
        body = self.actor_body if self.critic_body is None else self.critic_body
        features = body(inputs)
        if self.has_memory:
            core = self.actor_core if self.critic_body is None else self.critic_core
            features, _ = _remember(core, leading, features, self._core_states(state)[-1])
        value: Tensor = self.critic_head(features)
        return value.reshape(leading)

    def state_after(
        self, observation: Mapping[str, Tensor], state: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Return the state ``[b, size]`` after a sequence; see `evaluate`."""
        after: Tensor = self(observation, state, keep)[2]
        return after

    def mode(
        self,
        observation: Mapping[str, Tensor],
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PolicyStep:
        """Return the most probable actions."""
        parameters, _, *after = self(observation, *self._memory(state))
        return PolicyStep(self.distribution.mode(parameters, mask), {}, *after)

    def update_normalizers(self, observation: Mapping[str, Tensor]) -> None:
        """Add observations to the running statistics; no other method changes them."""
        _, inputs = self._leaves(observation)
        for each, leaf in zip(self.normalizers, inputs, strict=True):
            if isinstance(each, RunningNormalizer):
                each.update(leaf)

    def _memory(self, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the arguments that `forward` takes only with a memory."""
        return arguments if self.has_memory else ()

    def _core_states(self, state: Tensor | None) -> tuple[Tensor, ...]:
        """Return the state of each core, one after the other.

        Raises:
            FastrlError: ``state`` is None.
        """
        cores = (
            [self.actor_core] if self.critic_body is None else [self.actor_core, self.critic_core]
        )
        if state is None:
            raise FastrlError(
                f"{type(self).__name__} has a memory and needs the state of the previous step; "
                "in a loss, minibatch.evaluate(policy) passes it"
            )
        sizes = [0 if core is None else core.state_size for core in cores]
        states: tuple[Tensor, ...] = state.split(sizes, 1)
        return states

    def _inputs(self, observation: Mapping[str, Tensor]) -> tuple[torch.Size, list[Tensor]]:
        """Return the leading axes, and normalised leaves ``[n, *shape]``."""
        leading, inputs = self._leaves(observation)
        return leading, [f(x) for f, x in zip(self.normalizers, inputs, strict=True)]

    def _leaves(self, observation: Mapping[str, Tensor]) -> tuple[torch.Size, list[Tensor]]:
        leading, found = torch.Size(), []
        for path, spec in self.observation_specs.items():
            leaf = observation[path]
            leading = leaf.shape[: leaf.ndim - len(spec.shape)]
            found.append(leaf.reshape(-1, *spec.shape))
        return leading, found


def _remember(
    core: Core | None,
    leading: torch.Size,
    features: Tensor,
    state: Tensor,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a core's features ``[n, F]`` and next state, for one step or a sequence."""
    if core is None:
        return features, state
    if len(leading) == 1:
        return core.step(features, state)
    features, state = core.sequence(features.unflatten(0, leading), state, keep)
    return features.flatten(0, 1), state


def _require_memory_for_actions(env_spec: EnvSpec, config: ModelConfig) -> None:
    """Reject action spaces whose last layer does not fit into memory."""
    features = (config.hidden_sizes or (1,))[-1]
    for leaf in leaves(env_spec.action_space).values():
        if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete):
            sizes = [int(leaf.n)] if isinstance(leaf, spaces.Discrete) else leaf.nvec.ravel()
            padded = len(sizes) * int(max(sizes))
            require_memory(max(features, 8) * padded, f"action space {leaf}")


@torch_threads(1)
def build_model(
    env_spec: EnvSpec,
    config: ModelConfig,
    action_bounds: ActionBounds = "clip",
    own_class: Any = None,
) -> PolicyModel:
    """Build the policy of a configuration.

    Its initial weights do not depend on the number of torch's threads.

    Args:
        env_spec: Spaces and fields of the environment.
        config: The network; ``class_path`` names a custom class, which is then called with
            ``env_spec`` and ``config.kwargs``.
        action_bounds: See `ActionDistribution`; a custom class receives it only in its kwargs.
        own_class: The class that ``class_path`` names, if it has been imported already.

    Raises:
        ConfigError: The custom class cannot be imported or built, does not take its arguments, or
            lacks a method; or torch's default dtype or device was changed.
        SpaceError: The action space is not supported.
    """
    instance("env_spec", env_spec, EnvSpec)
    instance("config", config, ModelConfig)
    one_of("action_bounds", action_bounds, get_args(ActionBounds))
    _require_usual_defaults()
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


def _require_usual_defaults() -> None:
    """Reject other default dtypes or devices of torch, which new tensors would have."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32:
        raise ConfigError(
            f"torch's default dtype is {dtype}, but fastrl computes in float32: call "
            "torch.set_default_dtype(torch.float32)"
        )
    if device.type != "cpu":
        raise ConfigError(
            f"torch's default device is {device}; fastrl learns on algorithm.device: call "
            "torch.set_default_device('cpu')"
        )


def _require_mask(model: nn.Module, where: str, env_spec: EnvSpec) -> None:
    """Reject a policy whose methods do not take the mask of an environment that has one."""
    for name in ("act", "evaluate", "mode"):
        parameters = inspect.signature(getattr(model, name)).parameters.values()
        if not any(each.name == "mask" or each.kind is each.VAR_KEYWORD for each in parameters):
            raise ConfigError(
                f"{where}.{name} takes no mask, but '{env_spec.id}' has masks of valid actions; "
                "add the parameter, or set env.action_mask=off"
            )


def check_model_class(config: ModelConfig, own_class: Any = None) -> Any:
    """Check the arguments of the class that ``class_path`` names, and return it; None without one.

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
        state_dict: Tensors by name.
        what: Source of the parameters, for the error.

    Raises:
        FastrlError: They belong to another model; the error names the first tensors that differ.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    if wanted != found:
        wrong = [key for key in sorted(wanted | found) if wanted.get(key) != found.get(key)]
        more = ", …" if len(wrong) > _MOST_NAMES else ""
        listed = ", ".join(_difference(key, wanted, found) for key in wrong[:_MOST_NAMES])
        raise FastrlError(f"{what} belongs to another model: {listed}{more}")
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, KeyError) as error:
        raise FastrlError(f"{what} belongs to another model: {cause(error)}") from error


def _difference(
    key: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    if key not in found:
        return f"{key} is missing"
    if key not in wanted:
        return f"{key} is not of this model"
    return f"{key} is {found[key]}, not {wanted[key]}"


@contextmanager
def sampling_mode(model: object) -> Iterator[None]:
    """Set a model to evaluation mode, as samplers do, and restore its mode afterwards."""
    before = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
