"""Adversarial inverse reinforcement learning."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastrl.config import AIRLConfig, Config
from fastrl.errors import ConfigError
from fastrl.learning.adversarial import Adversarial, Leaves, Rows
from fastrl.models.policy import PolicyModel
from fastrl.models.scorer import Scorer
from fastrl.spec import EnvSpec, only_given


class AIRL(Adversarial):
    """A discriminator whose log-odds are f(s, a, s') - log π(a|s).

    Fu et al. 2018 (https://arxiv.org/abs/1710.11248), section 5: f(s, a, s') = g(s, a) + γ h(s') -
    h(s), where h takes over what shapes the reward, and g is the reward that is left. In the
    absorbing state there is nothing to choose: log π is 0.
    """

    section_type = AIRLConfig
    section: AIRLConfig
    uses_following = True

    def build_discriminator(self, config: Config, env_spec: EnvSpec) -> nn.Module:
        """Return the networks g and h; see `Adversarial`."""
        if config.model.recurrent is not None:
            raise ConfigError(
                "model.recurrent: must be null with algorithm.name: airl, since demonstrations "
                f"hold no state of the policy; got {config.model.recurrent}"
            )
        takes_action = not self.section.state_only
        return nn.ModuleDict(
            {
                "reward": self.scorer(config, env_spec, takes_action=takes_action),
                "shaping": self.scorer(config, env_spec, takes_action=False),
            }
        )

    def log_odds(self, rows: Rows, policy: PolicyModel) -> Tensor:
        """Return f - log π of each step; see `Adversarial`."""
        assert rows.following is not None
        reward = self._score("reward", rows.observation, rows.action, rows.is_absorbing)
        before = self._score("shaping", rows.observation, rows.action, rows.is_absorbing)
        after = self._score("shaping", rows.following, rows.action, rows.ends)
        with torch.no_grad():
            log_prob = policy.evaluate(
                dict(rows.observation), dict(rows.action), **only_given(mask=rows.mask)
            )[0].masked_fill(rows.is_absorbing, 0.0)
        return reward + self.section.gamma * after - before - log_prob

    def _score(self, name: str, observation: Leaves, action: Leaves, flag: Tensor) -> Tensor:
        scorer = cast(Scorer, cast(nn.ModuleDict, self.discriminator)[name])
        scores: Tensor = scorer(scorer.features(observation, action, flag))
        return scores
