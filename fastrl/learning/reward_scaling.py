"""Rewards divided by the running deviation of the discounted return."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastrl.errors import FastrlError
from fastrl.learning.returns import discounted_sums_so_far
from fastrl.models.normalization import RunningNormalizer

_CLIP = 10.0
_STATISTICS = ("mean", "var", "count")


class RewardScaler:
    """Scales rewards so that discounted returns have a standard deviation of about 1.

    The statistics are those of S[t] = γ · S[t-1] + r[t], which starts anew with each episode,
    however it ended (Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, appendix A.1). A
    whole rollout is added first and then scaled by one number, so all its rewards stay
    comparable. The mean is not subtracted: that would change what is optimal.

    Args:
        gamma: Discount factor.
    """

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._statistics = RunningNormalizer(())
        self._so_far = torch.zeros(0)

    def __call__(self, reward: Tensor, ended: Tensor, restarted: Tensor | None = None) -> Tensor:
        """Add a rollout's rewards to the statistics and return them scaled, within ±10.

        Args:
            reward: ``[T, B] float32``.
            ended: ``[T, B] bool``: terminated or truncated.
            restarted: ``[B] bool``: where an episode begins that no end precedes; see `Rollout`.

        Returns:
            ``[T, B] float32``.
        """
        if self._so_far.shape != reward.shape[1:]:
            self._so_far = torch.zeros(reward.shape[1:])
        self._so_far = self._so_far.to(reward.device)
        if restarted is not None:
            self._so_far = self._so_far.masked_fill(restarted, 0.0)
        self._statistics.to(reward.device)
        sums, self._so_far = discounted_sums_so_far(reward, ended, self._so_far, self._gamma)
        self._statistics.update(sums)
        return (reward * self._statistics.scale()).clamp_(-_CLIP, _CLIP)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the statistics, and of the sums of unfinished episodes."""
        state = {name: getattr(self._statistics, name).clone() for name in _STATISTICS}
        return {**state, "so_far": self._so_far.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Unfinished episodes are forgotten where the next rollout has another number of slots.

        Raises:
            FastrlError: It is not the state of a reward scaler.
        """
        if state.keys() != {*_STATISTICS, "so_far"}:
            raise FastrlError(f"not the state of a reward scaler: {sorted(state)}")
        self._statistics.load_state_dict({name: state[name] for name in _STATISTICS})
        self._so_far = state["so_far"].clone()
