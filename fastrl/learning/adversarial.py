"""GAIL and AIRL: PPO with a learnt reward, from a discriminator of demonstrated steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from fastrl.config import AdversarialConfig, AIRLConfig, Config, GAILConfig, ModelConfig
from fastrl.datasets import Demonstrations, load_dataset
from fastrl.datasets.streams import rollout_fields
from fastrl.global_streams import seeded_weights
from fastrl.learning.algorithm import Experience, Prepared, Scheduled
from fastrl.learning.gradients import Adam, FlatParameters
from fastrl.learning.ppo import PPO
from fastrl.learning.ranks import Ranks
from fastrl.learning.statistics import joined_update
from fastrl.models.distributions import ActionBounds
from fastrl.models.images import image_layouts
from fastrl.models.networks import RunningNormalizer, leaf_encoder, mlp, normalizer
from fastrl.models.policy import PolicyModel, sampling_mode, state_size
from fastrl.spaces import leaves
from fastrl.spec import ACTION_MASK, EnvSpec, only_given

Leaves = Mapping[str, Tensor]
_MOST_LOG_ODDS = 10.0
"""Bound of the log-odds in rewards: a confident discriminator would dominate all returns."""
_ROWS_AT_ONCE = 4096
_EPS = 1e-8
_ROW = "row"


class Adversarial(PPO):
    """PPO with the reward of a discriminator between demonstrated and sampled steps.

    Before each update the discriminator learns from steps of the rollout and of the demonstrations,
    drawn with replacement. Its reward then replaces that of the environment. A subclass defines the
    log-odds of the discriminator.

    Attributes:
        uses_following: Whether the log-odds depend on next observations.
    """

    section_type = AdversarialConfig
    section: AdversarialConfig
    schedules: ClassVar = {
        **PPO.schedules,
        "discriminator_learning_rate": "discriminator_learning_rate_schedule",
    }
    uses_following: ClassVar[bool] = False

    def begin(self, config: Config, env_spec: EnvSpec, device: torch.device, ranks: Ranks) -> None:
        """Load the demonstrations and build the discriminator; see `Algorithm.begin`."""
        self._device, self._ranks = device, ranks
        self._is_absorbing = self.section.episode_ends == "absorbing"
        self._dataset = load_dataset(config, env_spec)
        self._demonstrations = demonstrated(
            self._dataset,
            env_spec,
            absorbing=self._is_absorbing,
            follows=self.uses_following,
        )
        with seeded_weights(config.seed):
            self.discriminator = self.build_discriminator(config, env_spec).to(device)
        for scorer in self._scorers():
            scorer.observe(self._demonstrations.observation)
        self._parameters = FlatParameters(self.discriminator.parameters())
        self._optimizer = Adam(self._parameters, _EPS)
        self._generator = torch.Generator().manual_seed(config.seed)

    def scorer(self, config: Config, env_spec: EnvSpec, *, takes_action: bool = True) -> Scorer:
        """Return a new network of the configured size."""
        sizes = {"hidden_sizes": self.section.discriminator_hidden_sizes}
        return Scorer(
            env_spec,
            config.model.model_copy(update=sizes),
            config.env.action_bounds,
            takes_action=takes_action,
            is_lipschitz=self.section.spectral_norm,
        )

    @abstractmethod
    def build_discriminator(self, config: Config, env_spec: EnvSpec) -> nn.Module:
        """Return the discriminator: a `Scorer`, or a module that contains several."""

    @abstractmethod
    def log_odds(self, rows: Rows, policy: PolicyModel) -> Tensor:
        """Return log D - log(1 - D), ``[n]``, of D, the probability that steps are demonstrated.

        Args:
            rows: The steps.
            policy: The policy that learns.
        """

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Train the discriminator, and return its reward; see `Algorithm.relabel`."""
        steps = self.steps(experience, policy)
        self._observe(steps)
        rate = float(scheduled["discriminator_learning_rate"])
        updates = range(self.section.discriminator_updates)
        metrics = torch.stack([self._update(steps, policy, rate) for _ in updates]).mean(0)
        names = ("discriminator_loss", "discriminator_accuracy")
        found = dict(zip(names, metrics, strict=True))
        # In evaluation mode a forward pass does not change the estimates of spectral norms, so
        # all rewards come from the same weights, and all ranks keep the same weights.
        with sampling_mode(self.discriminator):
            reward = self._rewards(steps, policy)
            found["discriminator_reward"] = reward.mean()
            if len(steps) > len(reward):
                # The discounted return of staying in the absorbing state forever.
                first = torch.tensor([len(reward)], device=steps.terminated.device)
                forever = self.section.gamma / (1 - self.section.gamma)
                after = forever * self._reward(steps.rows(first, self._device), policy)
                reward = reward + steps.terminated.to(self._device) * after
        there = experience["reward"]
        return Prepared({"reward": reward.view(there.shape).to(there.device)}, found)

    def steps(self, experience: Experience, policy: PolicyModel) -> Steps:
        """Return the steps of a rollout; a subclass may add to them and to the demonstrations."""
        return sampled(experience, absorbing=self._is_absorbing, follows=self.uses_following)

    def _update(self, steps: Steps, policy: PolicyModel, learning_rate: float) -> Tensor:
        """Take one gradient step; return the loss and the accuracy, ``[2]``."""
        demonstrated_rows, own_rows = (self._drawn(each) for each in (self._demonstrations, steps))
        with torch.enable_grad():
            theirs = self.log_odds(demonstrated_rows, policy)
            own = self.log_odds(own_rows, policy)
            loss = discriminator_loss(theirs, own)
            total = loss
            if self.section.gradient_penalty:
                penalty = self._penalty(demonstrated_rows, own_rows)
                total = loss + self.section.gradient_penalty * penalty
        self._parameters.gradient.zero_()
        total.backward()
        if self._ranks.size > 1:
            self._ranks.sum(self._parameters.gradient).div_(self._ranks.size)
        self._optimizer.step(learning_rate)
        right = ((theirs > 0).float().mean() + (own < 0).float().mean()) / 2
        return torch.stack([loss.detach(), right])

    def _drawn(self, steps: Steps) -> Rows:
        # Every rank draws for all, so that their generators stay equal, and takes its own part.
        shape = (self._ranks.size, self.section.discriminator_batch_size)
        index = torch.randint(len(steps), shape, generator=self._generator)[self._ranks.rank]
        return steps.rows(index.to(steps.terminated.device), self._device)

    def _penalty(self, one: Rows, other: Rows) -> Tensor:
        """Return E[(‖∇ score‖ - 1)²] between demonstrated features and own ones, ``[]``.

        Gulrajani et al. 2017 (https://arxiv.org/abs/1704.00028), equation 3.
        """
        shape = (self._ranks.size, len(one.ends), 1)
        drawn = torch.rand(shape, generator=self._generator)[self._ranks.rank]
        weight = drawn.to(self._device)
        penalties = []
        for scorer in self._scorers():
            with torch.no_grad():
                ends = [
                    scorer.features(r.observation, r.action, r.is_absorbing) for r in (one, other)
                ]
                between = torch.lerp(ends[0], ends[1], weight)
            between.requires_grad_()
            (gradient,) = torch.autograd.grad(scorer(between).sum(), between, create_graph=True)
            penalties.append((gradient.norm(dim=-1) - 1).square().mean())
        return torch.stack(penalties).sum()

    def _rewards(self, steps: Steps, policy: PolicyModel) -> Tensor:
        """Return the reward of each step of a rollout, ``[T · B] float32``."""
        parts = steps.parts(_ROWS_AT_ONCE, self._device)
        return torch.cat([self._reward(rows, policy) for rows in parts])

    def _reward(self, rows: Rows, policy: PolicyModel) -> Tensor:
        log_odds = self.log_odds(rows, policy).clamp(-_MOST_LOG_ODDS, _MOST_LOG_ODDS)
        return reward_of(log_odds, self.section.reward)

    def _observe(self, steps: Steps) -> None:
        """Add a rollout to the statistics of observations."""
        for scorer in self._scorers():
            statistics = [m for m in scorer.normalizers if isinstance(m, RunningNormalizer)]
            update = partial(scorer.observe, steps.observation)
            joined_update(self._ranks, statistics, update)

    def _scorers(self) -> list[Scorer]:
        return [each for each in self.discriminator.modules() if isinstance(each, Scorer)]

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the discriminator, its optimiser and its generator."""
        module = self.discriminator.state_dict()
        return {
            "discriminator": {name: tensor.cpu().clone() for name, tensor in module.items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
        self.discriminator.load_state_dict(state["discriminator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])


def discriminator_loss(demonstrated: Tensor, own: Tensor) -> Tensor:
    """Return the mean cross entropy of both halves of a batch, ``[]``, in nats.

    Args:
        demonstrated: ``[n]``: log-odds of demonstrated steps.
        own: ``[n]``: log-odds of the policy's steps.
    """
    return (functional.softplus(-demonstrated).mean() + functional.softplus(own).mean()) / 2


def reward_of(log_odds: Tensor, kind: str) -> Tensor:
    """Return the reward of a discriminator's log-odds, of the same shape.

    Args:
        log_odds: log D - log(1 - D).
        kind: ``positive`` for -log(1 - D), ``negative`` for log D, ``both`` for their sum.
    """
    if kind == "positive":
        return functional.softplus(log_odds)
    return -functional.softplus(-log_odds) if kind == "negative" else log_odds


class GAIL(Adversarial):
    """A discriminator of observations and actions.

    Ho and Ermon 2016 (https://arxiv.org/abs/1606.03476), algorithm 1, with PPO.
    """

    section_type = GAILConfig

    def build_discriminator(self, config: Config, env_spec: EnvSpec) -> Scorer:
        """Return one network; see `Adversarial`."""
        return self.scorer(config, env_spec)

    def log_odds(self, rows: Rows, policy: PolicyModel) -> Tensor:
        """Return the score of each step; see `Adversarial`."""
        scorer = cast(Scorer, self.discriminator)
        scores: Tensor = scorer(scorer.features(rows.observation, rows.action, rows.is_absorbing))
        return scores


class AIRL(Adversarial):
    """A discriminator whose log-odds are f(s, a, s') - log π(a|s).

    Fu et al. 2018 (https://arxiv.org/abs/1710.11248), section 5: f(s, a, s') = g(s, a) + γ h(s') -
    h(s), where h is the shaping of the reward, and g the reward without it. In the
    absorbing state there are no actions, so log π is 0.
    """

    section_type = AIRLConfig
    section: AIRLConfig
    uses_following = True

    def build_discriminator(self, config: Config, env_spec: EnvSpec) -> nn.Module:
        """Return the networks g and h; see `Adversarial`."""
        self._sequence_length = config.sequence_length
        self._streams: Experience | None = None
        takes_action = not self.section.state_only
        return nn.ModuleDict(
            {
                "reward": self.scorer(config, env_spec, takes_action=takes_action),
                "shaping": self.scorer(config, env_spec, takes_action=False),
            }
        )

    def steps(self, experience: Experience, policy: PolicyModel) -> Steps:
        """Return the steps of a rollout; with a memory also the log-probabilities of all steps."""
        own = super().steps(experience, policy)
        if not state_size(policy):
            return own
        streams = self._streams
        if streams is None:
            numbered = {_ROW: torch.arange(len(self._dataset))}
            fields = rollout_fields(replace(self._dataset, fields=numbered), self._sequence_length)
            streams = Experience.of(fields, self._dataset.env_spec, self._device)
            self._streams = streams
        state = {"policy_state": streams.states(policy, self._sequence_length)}
        streams = replace(streams, fields={**streams.fields, **state})
        found = _log_prob(streams, policy)
        # Padding repeats rows, with the same probabilities.
        log_prob = torch.empty(len(self._dataset)).index_copy(0, streams[_ROW].flatten(), found)
        self._demonstrations = replace(self._demonstrations, log_prob=log_prob)
        return replace(own, log_prob=_log_prob(experience, policy))

    def log_odds(self, rows: Rows, policy: PolicyModel) -> Tensor:
        """Return f - log π of each step; see `Adversarial`."""
        assert rows.following is not None
        reward = self._score("reward", rows.observation, rows.action, rows.is_absorbing)
        before = self._score("shaping", rows.observation, rows.action, rows.is_absorbing)
        after = self._score("shaping", rows.following, rows.action, rows.ends)
        log_prob = rows.log_prob
        if log_prob is None:
            with torch.no_grad():
                log_prob = policy.evaluate(
                    dict(rows.observation), dict(rows.action), **only_given(mask=rows.mask)
                )[0]
        log_prob = log_prob.masked_fill(rows.is_absorbing, 0.0)
        return reward + self.section.gamma * after - before - log_prob

    def _score(self, name: str, observation: Leaves, action: Leaves, flag: Tensor) -> Tensor:
        scorer = cast(Scorer, cast(nn.ModuleDict, self.discriminator)[name])
        scores: Tensor = scorer(scorer.features(observation, action, flag))
        return scores


def _log_prob(experience: Experience, policy: PolicyModel) -> Tensor:
    """Return log π of the actions of a rollout, ``[T · B] float32``, on the rollout's device."""
    found = experience.on_device().evaluated(policy, _ROWS_AT_ONCE)[0]
    return found.to(experience["terminated"].device)


@dataclass(frozen=True)
class Steps:
    """N steps, then A steps in the absorbing state, one for each termination.

    Rows are numbered from 0 to N + A - 1; the last A are in the absorbing state.

    Attributes:
        observation: Per leaf ``[N, *shape]``.
        action: Per leaf ``[N, *shape]``, as a policy samples it.
        following: Per leaf ``[N, *shape]``: the next observation; None if it is not used.
        terminated: ``[N] bool``.
        mask: ``[N, choices] bool``: valid actions; None without masks.
        absorbing: Whether terminations lead to the absorbing state.
        log_prob: ``[N] float32``: log-probability of the actions under a policy with a memory;
            None without a memory, since it is then computed from the rows.
    """

    observation: Leaves
    action: Leaves
    following: Leaves | None
    terminated: Tensor
    mask: Tensor | None = None
    absorbing: bool = True
    log_prob: Tensor | None = None

    @cached_property
    def sources(self) -> Tensor:
        """``[N + A] int64``: the step of each row, or the one that led to its absorbing state."""
        steps = torch.arange(len(self.terminated), device=self.terminated.device)
        return torch.cat([steps, self.terminated.nonzero().flatten()]) if self.absorbing else steps

    def __len__(self) -> int:
        """Return N + A."""
        return len(self.sources)

    def rows(self, index: Tensor, device: torch.device) -> Rows:
        """Return some rows on a device.

        Args:
            index: ``[n] int64``.
            device: Target device.
        """
        source = self.sources[index]

        def gathered(leaves: Leaves) -> dict[str, Tensor]:
            return {path: leaf[source].to(device) for path, leaf in leaves.items()}

        is_absorbing = index >= len(self.terminated)
        ends = is_absorbing | (self.terminated[source] & self.absorbing)
        return Rows(
            observation=gathered(self.observation),
            action=gathered(self.action),
            following=None if self.following is None else gathered(self.following),
            is_absorbing=is_absorbing.to(device),
            ends=ends.to(device),
            mask=None if self.mask is None else self.mask[source].to(device),
            log_prob=None if self.log_prob is None else self.log_prob[source].to(device),
        )

    def parts(self, size: int, device: torch.device) -> Iterator[Rows]:
        """Yield the N steps in order, without the absorbing state, some rows at a time."""
        for index in torch.arange(len(self.terminated)).split(size):
            yield self.rows(index.to(self.terminated.device), device)


@dataclass(frozen=True)
class Rows:
    """Some rows of `Steps`.

    Attributes:
        observation: Per leaf ``[n, *shape]``; arbitrary in the absorbing state.
        action: Per leaf ``[n, *shape]``; arbitrary in the absorbing state.
        following: Per leaf ``[n, *shape]``; None if it is not used.
        is_absorbing: ``[n] bool``: True in the absorbing state.
        ends: ``[n] bool``: True if the step leads to the absorbing state.
        mask: ``[n, choices] bool`` or None.
        log_prob: ``[n] float32`` or None; arbitrary in the absorbing state.
    """

    observation: Leaves
    action: Leaves
    following: Leaves | None
    is_absorbing: Tensor
    ends: Tensor
    mask: Tensor | None
    log_prob: Tensor | None


def demonstrated(
    found: Demonstrations, env_spec: EnvSpec, *, absorbing: bool, follows: bool
) -> Steps:
    """Return the steps of demonstrations.

    Args:
        found: The demonstrations.
        env_spec: Their environment.
        absorbing: See `Steps`.
        follows: Whether next observations are used.
    """
    observation, mask = env_spec.split_mask(found.observation)
    following = env_spec.split_mask(found.next_observation)[0] if follows else None
    return Steps(observation, found.action, following, found.terminated, mask, absorbing)


def sampled(experience: Experience, *, absorbing: bool, follows: bool) -> Steps:
    """Return the steps of a rollout, row t · B + b for slot b at time t.

    Args:
        experience: The rollout, with the field ``final_observation`` if ``follows``.
        absorbing: See `Steps`.
        follows: Whether next observations are used.
    """
    ended = experience["terminated"] | experience["truncated"]
    mask, following = experience.fields.get(ACTION_MASK), None
    if follows:
        following = {}
        for path, leaf in experience.observation.items():
            final = experience[f"final_observation/{path}".rstrip("/")]
            at = ended.view(*ended.shape, *[1] * (leaf.ndim - 2))
            following[path] = torch.where(at, final, leaf[1:]).flatten(0, 1)
    return Steps(
        {path: leaf[:-1].flatten(0, 1) for path, leaf in experience.observation.items()},
        {path: leaf.flatten(0, 1) for path, leaf in experience.action.items()},
        following,
        experience["terminated"].flatten(),
        None if mask is None else mask[:-1].flatten(0, 1),
        absorbing,
    )


class Scorer(nn.Module):
    """An MLP over the encoded leaves of an observation and an action, and over a flag.

    The flag marks the absorbing state, which has neither observation nor action: all other features
    are 0 there. Numbers of observations are normalised by statistics that only `observe` changes.

    Attributes:
        num_features: F: inputs of the MLP, the flag included.

    Args:
        env_spec: Specification of the environment.
        config: Hidden layers and encoders of images.
        action_bounds: Mapping of sampled actions to those of a bounded ``Box``: the network reads
            the actions that the environment receives.
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
            flag: ``[n] bool``: True in the absorbing state.
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
    """Turns sampled actions into those of the environment, scaled to ±1 for a bounded ``Box``."""

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
