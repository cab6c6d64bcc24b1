"""The actor-critic network that is built from an environment's spaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastrl.arguments import instance
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.models.action_parts import ActionBounds
from fastrl.models.distributions import ActionDistribution
from fastrl.models.images import ImageLayout, image_layouts
from fastrl.models.networks import Body, is_bounded, orthogonal, require_memory
from fastrl.models.normalization import RunningNormalizer
from fastrl.spaces import TensorSpec, leaves
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, PolicyStep

_ACTOR_GAIN = 0.01
_CRITIC_GAIN = 1.0


class ActorCritic(nn.Module):
    """Policy and value function over any supported spaces; a `PolicyModel`.

    Observations and actions are mappings from leaf path to ``[*, *leaf.shape]``, with the same
    leading axes ``[*]`` everywhere: ``[n]``, ``[T, B]`` or any others.

    It has no memory and masks no actions: its state has size 0, and ``state``, ``keep`` and
    ``mask`` change nothing.

    `mode`, `act` and `value` take tensors by leaf path, ``{"": tensor}`` for a plain space. The
    actions that they return are those of the distribution: with ``clip`` continuous ones are not
    yet clipped to the bounds of their space, and discrete ones count from 0, whatever the space's
    ``start`` is. `fastrl.envs.actions.ActionConverter` makes of them what an environment accepts.

    Attributes:
        observation_specs: Shape and dtype of each observation leaf, by path.
        outputs: What `act` returns beside actions. A subclass that returns more declares it here.

    Args:
        env_spec: Gives the spaces.
        config: Sizes, activation and initialisation; see `Body` for what they apply to. With
            ``shared_body`` the value is a second head on the actor's body, otherwise it has a
            separate body. ``auto`` shares the body where an observation is an image.
        action_bounds: See `ActionDistribution`.

    Raises:
        ConfigError: The value has sizes of its own, but no body; or a layer does not fit.
        SpaceError: A space is not supported.
    """

    outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE

    def __init__(
        self, env_spec: EnvSpec, config: ModelConfig, action_bounds: ActionBounds = "clip"
    ) -> None:
        super().__init__()
        instance("env_spec", env_spec, EnvSpec)
        instance("config", config, ModelConfig)
        space = env_spec.observation_space
        self.observation_specs = env_spec.observation
        _require_memory_for_actions(env_spec, config)
        layouts = image_layouts(space, config)
        self.normalizers = nn.ModuleList(
            _normalizer(leaf, layouts[path], config.normalize_observations)
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
        critic_body = self.critic_body or self.actor_body
        self.actor_head = nn.Linear(self.actor_body.num_features, self.distribution.num_parameters)
        self.critic_head = nn.Linear(critic_body.num_features, 1)
        if config.orthogonal_init:
            orthogonal(self.actor_head, _ACTOR_GAIN)
            orthogonal(self.critic_head, _CRITIC_GAIN)
        self.distribution.start_log_std(self.actor_head.bias)

    def forward(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the distribution's parameters ``[*, P]`` and the value ``[*]``."""
        leading, inputs = self._inputs(observation)
        features = self.actor_body(inputs)
        critic = features if self.critic_body is None else self.critic_body(inputs)
        parameters: Tensor = self.actor_head(features)
        if len(leading) != 1:
            parameters = parameters.reshape(*leading, -1)
        return parameters, self.critic_head(critic).reshape(leading)

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise ``[*shape, noise_size] float32`` that `act` consumes."""
        return self.distribution.draw_noise(shape, generator, device)

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, 0] float32`` in which episodes begin."""
        return torch.zeros(n, 0)

    def act(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        state: Tensor | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> PolicyStep:
        """Return the actions that noise selects, with ``log_prob`` and ``value``, ``[*]`` each."""
        parameters, value = self(observation)
        action = self.distribution.sample(parameters, noise)
        log_prob = self.distribution.log_prob(parameters, action)
        return PolicyStep(action, {"log_prob": log_prob, "value": value})

    def evaluate(
        self,
        observation: Mapping[str, Tensor],
        action: Mapping[str, Tensor],
        state: Tensor | None = None,
        keep: Tensor | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-probability of actions, the entropy and the value, ``[*]`` each."""
        parameters, value = self(observation)
        return *self.distribution.evaluate(parameters, action), value

    def value(self, observation: Mapping[str, Tensor], state: Tensor | None = None) -> Tensor:
        """Return the value ``[*]``, without computing the policy where bodies are separate."""
        if type(self).forward is not ActorCritic.forward:
            # Only a subclass's own forward knows what its value is.
            own: Tensor = self(observation)[1]
            return own
        leading, inputs = self._inputs(observation)
        body = self.actor_body if self.critic_body is None else self.critic_body
        value: Tensor = self.critic_head(body(inputs))
        return value.reshape(leading)

    def mode(
        self,
        observation: Mapping[str, Tensor],
        state: Tensor | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the most probable actions."""
        return self.distribution.mode(self(observation)[0])

    def update_normalizers(self, observation: Mapping[str, Tensor]) -> None:
        """Add observations to the running statistics; nothing else ever moves them."""
        _, inputs = self._leaves(observation)
        for normalizer, leaf in zip(self.normalizers, inputs, strict=True):
            if isinstance(normalizer, RunningNormalizer):
                normalizer.update(leaf)

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


def _normalizer(leaf: spaces.Space[object], layout: ImageLayout | None, wanted: bool) -> nn.Module:
    """Return a normaliser for numbers; what has bounds or indices is scaled already."""
    if wanted and isinstance(leaf, spaces.Box) and not is_bounded(leaf, layout):
        return RunningNormalizer(tuple(leaf.shape))
    return nn.Identity()


def _require_memory_for_actions(env_spec: EnvSpec, config: ModelConfig) -> None:
    """Refuse actions of so many kinds that not even the last layer fits."""
    features = (config.hidden_sizes or (1,))[-1]
    for leaf in leaves(env_spec.action_space).values():
        if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete):
            sizes = [int(leaf.n)] if isinstance(leaf, spaces.Discrete) else leaf.nvec.ravel()
            padded = len(sizes) * int(max(sizes))
            require_memory(max(features, 8) * padded, f"action space {leaf}")
