"""Running statistics over all ranks, and the scaling of rewards by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastrl.errors import FastrlError
from fastrl.learning.ranks import Ranks
from fastrl.learning.returns import discounted_sums_so_far
from fastrl.models.networks import RunningNormalizer

_CLIP = 10.0
_STATISTICS = ("mean", "var", "count")


class RewardScaler:
    """Scales rewards so that discounted returns have a standard deviation of about 1.

    The statistics are those of S[t] = γ · S[t-1] + r[t], which starts again with each episode
    (Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, appendix A.1). A whole rollout is
    added first and then scaled by one number, so all its rewards stay comparable. The mean is not
    subtracted, which would change the optimal policy.

    Args:
        gamma: Discount factor.
        ranks: The ranks of the run, which share the scale; by default this process alone.
    """

    def __init__(self, gamma: float, ranks: Ranks | None = None) -> None:
        self._gamma, self._ranks = gamma, ranks or Ranks()
        self._statistics = RunningNormalizer(())
        self._so_far = torch.zeros(0)

    def __call__(
        self,
        reward: Tensor,
        ended: Tensor,
        restarted: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Add a rollout's rewards to the statistics and return them scaled, within ±10.

        Args:
            reward: ``[T, B] float32``.
            ended: ``[T, B] bool``: terminated or truncated.
            restarted: ``[B] bool``: True where a new environment began an episode; see `Rollout`.
            slots: ``[B] int64``: slots of the columns, if not every rollout has all slots.

        Returns:
            ``[T, B] float32``.
        """
        kept, ranks = self._so_far, self._ranks
        if slots is None:
            own = reward.shape[1]
            slots = torch.arange(own) + ranks.rank * own
            if len(kept) != own * ranks.size:
                kept = torch.zeros(own * ranks.size)
        missing = max(0, int(slots.max()) + 1 - len(kept))
        kept = torch.cat([kept, kept.new_zeros(missing)]).to(reward.device)
        slots = slots.to(reward.device)
        so_far = kept[slots]
        if restarted is not None:
            so_far = so_far.masked_fill(restarted, 0.0)
        self._statistics.to(reward.device)
        sums, so_far = discounted_sums_so_far(reward, ended, so_far, self._gamma)
        kept = kept.index_copy(0, slots, so_far)
        self._so_far = kept if ranks.size == 1 else ranks.stack(so_far).flatten()
        joined_update(ranks, [self._statistics], lambda: self._statistics.update(sums))
        return (reward * self._statistics.scale()).clamp_(-_CLIP, _CLIP)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the statistics, and of the sums of unfinished episodes."""
        state = {name: getattr(self._statistics, name).clone() for name in _STATISTICS}
        return {**state, "so_far": self._so_far.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state.

        Sums of unfinished episodes are dropped if the next rollout has another number of slots.

        Raises:
            FastrlError: It is not the state of a reward scaler.
        """
        if state.keys() != {*_STATISTICS, "so_far"}:
            raise FastrlError(f"not the state of a reward scaler: {sorted(state)}")
        self._statistics.load_state_dict({name: state[name] for name in _STATISTICS})
        self._so_far = state["so_far"].clone()


def joined_update(
    ranks: Ranks, statistics: Sequence[RunningNormalizer], update: Callable[[], None]
) -> None:
    """Call ``update`` with this rank's rows, and add the rows of the other ranks.

    The result is the same on all ranks, and equals that of one rank with all rows up to rounding.
    """
    if ranks.size == 1 or not statistics:
        update()
        return
    before = [each.moments() for each in statistics]
    for each in statistics:
        each.set_moments(*(torch.zeros_like(moment) for moment in each.moments()))
    update()
    moments = [moment for each in statistics for moment in each.moments()]
    rows = ranks.stack(torch.cat([moment.flatten() for moment in moments]))
    for each, old in zip(statistics, before, strict=True):
        each.set_moments(*old)
    for row in rows:
        parts = iter(row.split([moment.numel() for moment in moments]))
        for each in statistics:
            mean, var, count = (next(parts).view(old.shape) for old in each.moments())
            if count:
                each.join(mean, var, count)
