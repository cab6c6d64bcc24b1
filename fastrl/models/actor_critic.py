"""The actor-critic network that is built from an environment's spaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastrl.arguments import instance
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.models.distributions import ActionBounds, ActionDistribution
from fastrl.models.images import image_layouts
from fastrl.models.networks import Body, normalizer, orthogonal, require_memory
from fastrl.models.normalization import RunningNormalizer
from fastrl.models.recurrent import Core, RecurrentCore
from fastrl.spaces import TensorSpec, leaves
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, PolicyStep

_ACTOR_GAIN = 0.01
_CRITIC_GAIN = 1.0


class ActorCritic(nn.Module):
    """Policy and value function over any supported spaces; a `PolicyModel`.

    Observations and actions are mappings from leaf path to ``[*, *leaf.shape]``, with the same
    leading axes ``[*]`` everywhere: ``[n]``, ``[T, B]`` or any others.

    With ``recurrent`` it has a memory: a core behind each body, before the heads. Its state is
    that of the policy's core, followed by that of the value's where bodies are separate. Without
    it, the state has size 0, and ``state`` and ``keep`` are ignored.

    `mode`, `act` and `value` take tensors by leaf path, ``{"": tensor}`` for a plain space. They
    return actions of the distribution: with ``clip`` continuous ones are not yet clipped to the
    bounds of their space, and discrete ones count from 0, whatever the space's ``start`` is.
    `fastrl.envs.actions.ActionConverter` converts them to actions of the environment.

    Attributes:
        observation_specs: Shape and dtype of each observation leaf that it reads, by path; see
            `EnvSpec.inputs`.
        outputs: What `act` returns beside actions. A subclass that returns more declares it here.
        actor_core: The memory behind the policy's body; None without one.
        critic_core: That behind the value's own body.

    Args:
        env_spec: Gives the spaces.
        config: Sizes, activation and initialisation; see `Body` for what they apply to. With
            ``shared_body`` the value is a second head on the actor's body, otherwise it has a
            separate body. ``auto`` shares the body where an observation is an image.
        action_bounds: See `ActionDistribution`.

    Raises:
        ConfigError: The value has sizes but no separate body; or a layer does not fit.
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
        """The memories, in the order of their states; empty without any."""
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
            action: As `act` returned it.
            state: ``[b, size]`` before the first step; without a memory it is ignored.
            keep: ``[L, b] bool``: False where an episode begins; None where none does.
            mask: ``[*, choices] bool``: which actions were valid; None for all.

        Raises:
            FastrlError: The policy has a memory, and there is no state.
        """
        parameters, value = self(observation, *self._memory(state, keep))[:2]
        return *self.distribution.evaluate(parameters, action, mask), value

    def value(self, observation: Mapping[str, Tensor], state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``, without computing the policy where bodies are separate."""
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
        """Add observations to the running statistics, which nothing else changes."""
        _, inputs = self._leaves(observation)
        for each, leaf in zip(self.normalizers, inputs, strict=True):
            if isinstance(each, RunningNormalizer):
                each.update(leaf)

    def _memory(self, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the arguments of `forward` that only a policy with a memory has."""
        return arguments if self.has_memory else ()

    def _core_states(self, state: Tensor | None) -> tuple[Tensor, ...]:
        """Return the state of each core, one after the other.

        Raises:
            FastrlError: There is no state.
        """
        cores = (
            [self.actor_core] if self.critic_body is None else [self.actor_core, self.critic_core]
        )
        if state is None:
            raise FastrlError(
                f"{type(self).__name__} has a memory and needs a state: that of the step before, "
                "or where a loss evaluates the policy, minibatch.evaluate(policy) passes it"
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
