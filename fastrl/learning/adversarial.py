"""Imitation by a discriminator, whose reward PPO maximises."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastrl.config import AdversarialConfig, Config
from fastrl.datasets import load_dataset
from fastrl.learning.algorithm import Prepared, Scheduled
from fastrl.learning.experience import Experience
from fastrl.learning.optimizers import Adam, FlatParameters
from fastrl.learning.ppo import PPO
from fastrl.learning.ranks import Ranks
from fastrl.learning.shares import joined_update
from fastrl.learning.steps import Rows, Steps, demonstrated, sampled
from fastrl.models.normalization import RunningNormalizer
from fastrl.models.policy import PolicyModel
from fastrl.models.scorer import Scorer
from fastrl.spec import EnvSpec

_MOST_LOG_ODDS = 10.0
"""Bound of the log-odds in rewards: a discriminator that is sure would dominate all returns."""
_ROWS_AT_ONCE = 4096
_EPS = 1e-8


class Adversarial(PPO):
    """PPO with the reward of a discriminator between demonstrated steps and its own.

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
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
        """Return the networks, `Scorer` each or modules of them."""

    @abstractmethod
    def log_odds(self, rows: Rows, policy: PolicyModel) -> Tensor:
        """Return log D - log(1 - D), ``[n]``, of D, the probability that steps are demonstrated.

        Args:
            rows: The steps.
            policy: The one that learns.
        """

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Teach the discriminator, and return its reward; see `Algorithm.relabel`."""
        steps = self.steps(experience, policy)
        self._observe(steps)
        rate = float(scheduled["discriminator_learning_rate"])
        updates = range(self.section.discriminator_updates)
        metrics = torch.stack([self._update(steps, policy, rate) for _ in updates]).mean(0)
        reward = self._rewards(steps, policy)
        names = ("discriminator_loss", "discriminator_accuracy")
        found = dict(zip(names, metrics, strict=True)) | {"discriminator_reward": reward.mean()}
        if len(steps) > len(reward):
            # The discounted return of the absorbing state, which never ends.
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
        shape = (self.section.discriminator_batch_size,)
        index = torch.randint(len(steps), shape, generator=self._generator)
        return steps.rows(index.to(steps.terminated.device), self._device)

    def _penalty(self, one: Rows, other: Rows) -> Tensor:
        """Return E[(‖∇ score‖ - 1)²] between demonstrated features and own ones, ``[]``.

        Gulrajani et al. 2017 (https://arxiv.org/abs/1704.00028), equation 3.
        """
        weight = torch.rand(len(one.ends), 1, generator=self._generator).to(self._device)
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
        demonstrated: ``[n]``: log-odds that these steps are demonstrated, which they are.
        own: ``[n]``: the same of the policy's steps, which are not.
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
