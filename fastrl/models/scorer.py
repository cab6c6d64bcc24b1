"""A network that gives steps one number each, over any supported spaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastrl.config import ModelConfig
from fastrl.models.distributions import ActionBounds
from fastrl.models.images import image_layouts
from fastrl.models.networks import RunningNormalizer, leaf_encoder, mlp, normalizer
from fastrl.spaces import leaves
from fastrl.spec import EnvSpec


class Scorer(nn.Module):
    """An MLP over the encoded leaves of an observation and an action, and over a flag.

    The flag marks the absorbing state, which has neither observation nor action: all other features
    are 0 there. Numbers of observations are normalised by statistics that only `observe` changes.

    Attributes:
        num_features: F: inputs of the MLP, the flag included.

    Args:
        env_spec: Gives the spaces.
        config: The hidden layers, and how images are encoded.
        action_bounds: How actions are kept inside a bounded ``Box``: scores are those of what the
            environment gets.
        takes_action: Whether the score depends on the action.
        is_lipschitz: Whether the weights of each layer are divided by their largest singular value
            (Miyato et al. 2018, https://arxiv.org/abs/1802.05957).
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        config: ModelConfig,
        action_bounds: ActionBounds,
        *,
        takes_action: bool = True,
        is_lipschitz: bool = False,
    ) -> None:
        super().__init__()
        space = env_spec.input_space
        layouts, observed = image_layouts(space, config), leaves(space)
        acted = leaves(env_spec.action_space) if takes_action else {}
        self.normalizers = nn.ModuleList(
            normalizer(leaf, layouts[path], wanted=True) for path, leaf in observed.items()
        )
        encoders = [leaf_encoder(leaf, layouts[path], config) for path, leaf in observed.items()]
        self.bounds = nn.ModuleList(_Bounds(leaf, action_bounds) for leaf in acted.values())
        encoders += [leaf_encoder(_sampled(leaf), None, config) for leaf in acted.values()]
        self.encoders = nn.ModuleList(encoders)
        self.num_features = 1 + sum(encoder.num_features for encoder in encoders)
        body = mlp(self.num_features, config.hidden_sizes, config.activation)
        width = config.hidden_sizes[-1] if config.hidden_sizes else self.num_features
        self.layers = nn.Sequential(*body, nn.Linear(width, 1))
        if is_lipschitz:
            for layer in list(self.modules()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    spectral_norm(layer)

    def observe(self, observation: Mapping[str, Tensor]) -> None:
        """Add observations ``[n, *shape]`` by leaf to the statistics."""
        for normalise, leaf in zip(self.normalizers, observation.values(), strict=True):
            if isinstance(normalise, RunningNormalizer):
                normalise.update(leaf)

    def features(
        self, observation: Mapping[str, Tensor], action: Mapping[str, Tensor], flag: Tensor
    ) -> Tensor:
        """Return the inputs of the MLP, ``[n, F] float32``.

        Args:
            observation: Per leaf ``[n, *shape]``.
            action: Per leaf ``[n, *shape]``, as a policy samples it; ignored if it is not scored.
            flag: ``[n] bool``: where the state is the absorbing one.
        """
        inputs = [f(x) for f, x in zip(self.normalizers, observation.values(), strict=True)]
        inputs += [f(x) for f, x in zip(self.bounds, self._actions(action), strict=True)]
        encoded = [f(x) for f, x in zip(self.encoders, inputs, strict=True)]
        joined = torch.cat(encoded, -1).masked_fill(flag[:, None], 0.0)
        return torch.cat([joined, flag[:, None].float()], -1)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores ``[n]`` of features ``[n, F]``."""
        scores: Tensor = self.layers(features)
        return scores.squeeze(-1)

    def _actions(self, action: Mapping[str, Tensor]) -> Iterable[Tensor]:
        return action.values() if len(self.bounds) else ()


class _Bounds(nn.Module):
    """Turns sampled actions into those that the environment gets, a bounded ``Box`` to ±1."""

    _low: Tensor
    _high: Tensor

    def __init__(self, leaf: spaces.Space[Any], action_bounds: ActionBounds) -> None:
        super().__init__()
        self._squashes = action_bounds == "squash"
        self._is_box = isinstance(leaf, spaces.Box)
        if isinstance(leaf, spaces.Box):
            low, high = (torch.from_numpy(np.asarray(b, np.float32)) for b in (leaf.low, leaf.high))
            self.register_buffer("_low", low, persistent=False)
            self.register_buffer("_high", high, persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        if not self._is_box:
            return action
        if self._squashes:
            return action.tanh()
        clipped = action.maximum(self._low).minimum(self._high)
        is_bounded = self._low.isfinite() & self._high.isfinite()
        span = torch.where(is_bounded, self._high - self._low, 2.0)
        middle = torch.where(is_bounded, (self._high + self._low) / 2, 0.0)
        return (clipped - middle) / (span / 2).clamp(min=1e-8)


def _sampled(leaf: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space of actions as `_Bounds` returns them: choices from 0, boxes of floats."""
    if isinstance(leaf, spaces.Discrete):
        return spaces.Discrete(int(leaf.n))
    if isinstance(leaf, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(leaf.nvec)
    if isinstance(leaf, spaces.Box):
        return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)
    return leaf
