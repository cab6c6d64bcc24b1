from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fastrl.envs.catalogue import list_environments
from fastrl.envs.masked_tasks import FORWARD, LEFT, RIGHT, WAIT
from fastrl.envs.state import pack, unpack
from fastrl.errors import ArgumentError, EnvError


def played(env, choose, seed):
    """Return the rewards of an episode, and how often each action was valid."""
    observation, _ = env.reset(seed=seed)
    rewards, over = [], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(choose(observation))
        rewards.append(reward)
        over = terminated or truncated
    return rewards


@pytest.mark.parametrize("name", ["MaskedBandit-v0", "MaskedTMaze-v0"])
def test_tasks_are_registered_and_sound(name):
    assert [each.problem for each in list_environments(name)] == [""]
    env = gymnasium.make(name)
    check_env(env.unwrapped, skip_render_check=True)
    env.action_space.seed(0)
    streams = [played(env, lambda _: env.action_space.sample(), seed) for seed in (1, 1)]
    assert len(streams[0]) == len(streams[1]) == env.spec.max_episode_steps or "TMaze" in name


def test_the_arm_that_pays_is_valid_and_the_others_are_mostly_not():
    env = gymnasium.make("MaskedBandit-v0").unwrapped
    paying, _ = env.reset(seed=0)
    masks = []
    for _ in range(50):
        mask = env.action_masks()
        masks.append(mask)
        assert mask.sum() == 15
        assert mask[paying]
        paying, reward, *_ = env.step(paying)
        assert reward == 1
    assert len({mask.tobytes() for mask in masks}) == 50
    wrong = (paying + 1) % 70
    assert env.step(wrong)[1] == 0


def test_all_but_one_arm_may_be_invalid_and_no_more():
    env = gymnasium.make("MaskedBandit-v0", arms=3, invalid=2).unwrapped
    env.reset(seed=0)
    assert env.action_masks().sum() == 1
    with pytest.raises(ArgumentError, match="invalid must be at most 2"):
        gymnasium.make("MaskedBandit-v0", arms=3, invalid=3)


@pytest.mark.parametrize("remembers", [True, False])
def test_the_maze_needs_a_memory(remembers):
    env = gymnasium.make("MaskedTMaze-v0", length=4)
    rng = np.random.default_rng(0)

    def choose(observation):
        nonlocal sign
        shown, end = observation["observation"]
        sign = shown or sign
        if not end:
            return int(rng.choice(np.flatnonzero(observation["action_mask"])))
        turn = sign if remembers else rng.choice([-1, 1])
        return RIGHT if turn == 1 else LEFT

    returns = []
    for seed in range(60):
        sign = 0
        returns.append(sum(played(env, choose, seed)))
    assert set(returns) == ({1.0} if remembers else {-1.0, 1.0})


def test_an_invalid_action_costs_and_changes_nothing():
    env = gymnasium.make("MaskedTMaze-v0").unwrapped
    first, _ = env.reset(seed=0)
    assert first["action_mask"].tolist() == [0, 1, 0, 0]
    for action in (FORWARD, LEFT, RIGHT):
        seen, reward, terminated, *_ = env.step(action)
        assert (reward, terminated) == (-0.1, False)
        np.testing.assert_array_equal(seen["action_mask"], first["action_mask"])
    assert env.step(WAIT)[1] == 0


@pytest.mark.parametrize("name", ["MaskedBandit-v0", "MaskedTMaze-v0"])
def test_saved_states_go_on_as_they_would_have(name):
    one, other = (gymnasium.make(name).unwrapped for _ in range(2))
    one.reset(seed=3)
    for _ in range(5):
        one.step(WAIT)
    other.reset(seed=4)
    other.set_state(unpack(pack(one.get_state())))
    other.np_random.bit_generator.state = one.np_random.bit_generator.state
    for _ in range(20):
        assert repr(one.step(WAIT)) == repr(other.step(WAIT))


@pytest.mark.parametrize(("name", "above"), [("MaskedBandit-v0", 70), ("MaskedTMaze-v0", 4)])
def test_actions_outside_of_the_space_are_refused(name, above):
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    for action in (-1, above):
        with pytest.raises(EnvError, match=f"action {action} is not one of 0 to {above - 1}"):
            env.step(action)
