"""Rewards are divided by the deviation of the discounted return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrl.errors import FastrlError
from fastrl.learning.ranks import Ranks
from fastrl.learning.statistics import RewardScaler, joined_update
from fastrl.models.networks import RunningNormalizer


def never(steps: int, slots: int) -> torch.Tensor:
    return torch.zeros(steps, slots, dtype=torch.bool)


def test_scaled_discounted_return_has_deviation_1():
    random = torch.Generator().manual_seed(0)
    scaler = RewardScaler(gamma=0.9)
    for _ in range(20):
        reward = 7 * torch.randn(500, 4, generator=random)
        scaled = scaler(reward, never(500, 4))
    sums = np.zeros(4)
    all_sums = []
    for row in scaled.numpy():
        sums = 0.9 * sums + row
        all_sums.append(sums)
    assert np.std(all_sums) == pytest.approx(1.0, rel=0.1)


def test_rewards_of_a_rollout_keep_their_proportions_and_sign():
    scaled = RewardScaler(0.99)(torch.tensor([[2.0], [-4.0], [1.0]]), never(3, 1)).flatten()
    assert (scaled / scaled[2]).tolist() == pytest.approx([2.0, -4.0, 1.0])
    assert scaled[2] > 0


@pytest.mark.parametrize("how", ["within a rollout", "across rollouts"])
def test_sums_start_again_after_an_episode_ended(how):
    """Rewards 1, 1, end, 1, 1 with γ = 1: the sums 1, 2, 1, 2 vary by 0.25, not 1, 2, 3, 4."""
    scaler = RewardScaler(gamma=1.0)
    ended = torch.tensor([[False], [True], [False], [False]])
    if how == "within a rollout":
        scaler(torch.ones(4, 1), ended)
    else:
        scaler(torch.ones(2, 1), ended[:2])
        scaler(torch.ones(2, 1), ended[2:])
    assert scaler.state_dict()["var"].item() == pytest.approx(0.25)


def test_unfinished_episodes_go_on_in_the_next_rollout():
    scaler = RewardScaler(gamma=1.0)
    scaler(torch.ones(2, 1), never(2, 1))
    scaler(torch.ones(2, 1), never(2, 1))
    assert scaler.state_dict()["mean"].item() == pytest.approx(2.5)


@pytest.mark.parametrize("restarted", [(False, False), (True, False), (True, True)])
def test_episodes_that_no_end_precedes_start_from_nothing(restarted):
    scaler = RewardScaler(gamma=0.5)
    scaler(torch.ones(2, 2), never(2, 2))
    scaler(torch.ones(1, 2), never(1, 2), torch.tensor(restarted))
    expected = [1.0 if each else 1.75 for each in restarted]
    assert scaler.state_dict()["so_far"].tolist() == expected


def test_outliers_are_bounded():
    scaler = RewardScaler(0.0)
    reward = torch.zeros(1000, 1)
    reward[500] = 1e4
    assert scaler(reward, never(1000, 1)).max().item() == 10.0


def test_scaler_goes_on_from_its_state():
    reward = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    scaler, other = RewardScaler(0.9), RewardScaler(0.9)
    scaler(reward, never(8, 2))
    other.load_state_dict(scaler.state_dict())
    assert scaler(reward, never(8, 2)).tolist() == other(reward, never(8, 2)).tolist()


def test_unfinished_episodes_are_forgotten_if_the_number_of_slots_changes():
    scaler = RewardScaler(gamma=1.0)
    scaler(torch.ones(2, 1), never(2, 1))
    scaler(torch.ones(1, 3), never(1, 3))
    assert scaler.state_dict()["mean"].item() == pytest.approx((1 + 2 + 1 + 1 + 1) / 5)


def test_foreign_state_is_refused():
    with pytest.raises(FastrlError, match="not the state of a reward scaler"):
        RewardScaler(0.9).load_state_dict({"mean": torch.zeros(())})


def test_sums_of_slots_that_are_not_in_every_rollout_wait_for_them():
    """With γ = 1: slot 5 goes on where slot 5 was, whatever column it has in between."""
    scaler, one = RewardScaler(gamma=1.0), torch.ones(1, 1)
    both = RewardScaler(gamma=1.0)
    for slots in ([0, 5], [0], [5], [5, 0]):
        scaler(one.expand(1, len(slots)), never(1, len(slots)), slots=torch.tensor(slots))
    for slots in ([0, 5], [0, 5], [0, 5]):
        both(one.expand(1, 2), never(1, 2), slots=torch.tensor(slots))
    found, expected = scaler.state_dict(), both.state_dict()
    assert found["so_far"].tolist() == [3, 0, 0, 0, 0, 3]
    assert found["var"] == expected["var"]


def test_statistics_that_no_rank_adds_to_stay():
    ranks = Ranks()
    ranks.size, ranks.stack = 2, lambda tensor: torch.stack([tensor, tensor])
    seen, unseen = RunningNormalizer((2,)), RunningNormalizer((2,))
    joined_update(ranks, [seen, unseen], lambda: seen.update(torch.ones(3, 2)))
    assert seen.moments()[2] == 6
    for own, new in zip(unseen.moments(), RunningNormalizer((2,)).moments(), strict=True):
        assert torch.equal(own, new)
