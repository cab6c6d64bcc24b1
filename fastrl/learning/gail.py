"""Generative adversarial imitation learning."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from fastrl.config import Config, GAILConfig
from fastrl.learning.adversarial import Adversarial, Rows
from fastrl.models.policy import PolicyModel
from fastrl.models.scorer import Scorer
from fastrl.spec import EnvSpec


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
