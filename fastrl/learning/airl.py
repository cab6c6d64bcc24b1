"""Adversarial inverse reinforcement learning."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from fastrl.config import AIRLConfig, Config
from fastrl.datasets.streams import rollout_fields
from fastrl.learning.adversarial import Adversarial
from fastrl.learning.experience import Experience
from fastrl.learning.steps import Leaves, Rows, Steps
from fastrl.models.policy import PolicyModel, state_size
from fastrl.models.scorer import Scorer
from fastrl.spec import EnvSpec, only_given

_ROW, _ROWS_AT_ONCE = "row", 4096


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
        """Return the steps of a rollout, for a memory with the probabilities of all steps."""
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
    """Return log π of the actions of a rollout, ``[T · B] float32``, where the rollout is."""
    found = experience.on_device().evaluated(policy, _ROWS_AT_ONCE)[0]
    return found.to(experience["terminated"].device)
