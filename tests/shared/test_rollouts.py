"""Episodes are followed across the edges of rollouts."""

import copy
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.shared.rollouts import EpisodeTracker
from fastrl.shared.table import NUM_BANKS, Schema, Table
from fastrl.spec import EnvSpec

SPEC = EnvSpec("test", spaces.Box(-1, 1, (3,)), spaces.Discrete(2))


def fill(table: Table, index: int, reward: np.ndarray, end: np.ndarray) -> None:
    """Write a bank; 0 goes on, 1 terminates, 2 truncates."""
    bank = table.banks[index % NUM_BANKS]
    bank.reward.copy_(torch.from_numpy(reward))
    bank.terminated.copy_(torch.from_numpy(end == 1))
    bank.truncated.copy_(torch.from_numpy(end == 2))


@st.composite
def runs(draw):
    """A few rollouts' rewards and ends for T steps of B slots."""
    steps, slots, rollouts = (draw(st.integers(1, high)) for high in (6, 4, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (rollouts, steps, slots)
    ends = rng.choice(3, size=shape, p=draw(st.sampled_from([(1, 0, 0), (0.5, 0.3, 0.2)])))
    return rng.integers(-3, 4, size=shape).astype(np.float32), ends


@settings(max_examples=100)
@given(runs())
def test_episodes_equal_those_of_a_step_by_step_count(run):
    rewards, ends = run
    _, steps, slots = rewards.shape
    table = Table(Schema(SPEC), steps, slots)
    buffer = EpisodeTracker(table)
    totals, lengths = [0.0] * slots, [0] * slots
    for index in range(len(rewards)):
        fill(table, index, rewards[index], ends[index])
        expected = []
        for t in range(steps):
            for b in range(slots):
                totals[b] += rewards[index, t, b]
                lengths[b] += 1
                if ends[index, t, b]:
                    expected.append((totals[b], lengths[b], t, b))
                    totals[b], lengths[b] = 0.0, 0
        found = buffer.seal(index).episodes
        rows = zip(found.returns, found.lengths, found.end_step, found.slot, strict=True)
        assert list(rows) == expected
        assert len(found) == len(expected)


def test_rollout_is_a_view_of_the_bank_not_a_copy():
    table = Table(Schema(SPEC), 4, 2)
    rollout = EpisodeTracker(table).seal(0)
    table.banks[0].observation[""][4, 1, 2] = 7.0
    table.banks[0].reward[3, 1] = 5.0
    assert rollout.observation[4, 1, 2] == 7.0
    assert rollout.reward[3, 1] == 5.0
    assert rollout.num_steps == 8


def test_rollout_is_nested_like_the_spaces():
    observation = spaces.Dict(
        {"pair": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 255, (2, 2), np.uint8)))}
    )
    spec = EnvSpec("test", observation, spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(4))))
    rollout = EpisodeTracker(Table(Schema(spec), 5, 3)).seal(0)
    number, image = rollout.observation["pair"]
    assert (number.shape, number.dtype) == ((6, 3), torch.int64)
    assert (image.shape, image.dtype) == ((6, 3, 2, 2), torch.uint8)
    assert [tuple(action.shape) for action in rollout.action] == [(5, 3, 2), (5, 3)]


def test_fields_are_attributes_and_can_be_replaced_and_added():
    rollout = EpisodeTracker(Table(Schema(SPEC), 4, 2)).seal(0)
    assert list(rollout.fields) == [
        *("observation", "reward", "terminated", "truncated"),
        *("action", "log_prob", "value", "final_value", "policy_version"),
    ]
    assert all(getattr(rollout, name) is value for name, value in rollout.fields.items())
    bonus = torch.ones(4, 2)
    shaped = replace(rollout, reward=rollout.reward + bonus, bonus=bonus)
    assert shaped.bonus is bonus
    assert torch.equal(shaped.reward, rollout.reward + 1)
    assert shaped.value is rollout.value
    assert shaped.episodes is rollout.episodes
    assert not hasattr(rollout, "bonus")
    assert torch.equal(copy.deepcopy(shaped).bonus, bonus)


def test_rollout_outlives_its_table():
    table = Table(Schema(SPEC), 4, 2)
    rollout = EpisodeTracker(table).seal(0)
    rollout.reward.fill_(3.0)
    table.close()
    del table
    assert rollout.reward.sum() == 24.0


def test_rollout_is_shown_in_one_line():
    table = Table(Schema(SPEC), 6, 4)
    ends = np.zeros((6, 4))
    ends[2, 1] = 1
    fill(table, 0, np.ones((6, 4), np.float32), ends)
    assert repr(EpisodeTracker(table).seal(0)) == "Rollout(index=0, T=6, B=4, 1 episodes ended)"
