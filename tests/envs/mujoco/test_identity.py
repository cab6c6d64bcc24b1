"""Each batched environment beside gymnasium's own: the same to 1e-9, in every step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from fastrl.envs.mujoco import ENVIRONMENTS
from tests.envs.mujoco.reference import TOLERANCE, compare

GIVES_NO_TERMS = {
    "Hopper-v4",
    "InvertedDoublePendulum-v4",
    "InvertedPendulum-v4",
    "Walker2d-v4",
}

VARIANTS = [
    ("HalfCheetah-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3}),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 2}),
    ("HalfCheetah-v4", {"reset_noise_scale": 0.5}),
    ("Swimmer-v5", {"exclude_current_positions_from_observation": False}),
    ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_reward": 3.0}),
    ("Hopper-v4", {"terminate_when_unhealthy": False}),
    ("Hopper-v5", {"healthy_state_range": (-0.5, 0.5), "healthy_angle_range": (-1.0, 1.0)}),
    ("Walker2d-v5", {"terminate_when_unhealthy": False, "reset_noise_scale": 0.1}),
    ("Walker2d-v4", {"healthy_z_range": (1.1, 1.3)}),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "main_body": "torso"}),
    ("Ant-v5", {"contact_force_range": (-5.0, 5.0), "contact_cost_weight": 0.1, "main_body": 3}),
    ("Ant-v5", {"terminate_when_unhealthy": False, "reset_noise_scale": 0.4}),
    ("Ant-v4", {"use_contact_forces": True, "terminate_when_unhealthy": False}),
    ("Ant-v4", {"exclude_current_positions_from_observation": False}),
    ("Humanoid-v5", {"include_cinert_in_observation": False, "contact_cost_weight": 1e-3}),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "terminate_when_unhealthy": False}),
    ("Humanoid-v5", {"include_qfrc_actuator_in_observation": False}),
    ("Humanoid-v5", {"include_cfrc_ext_in_observation": False}),
    ("Humanoid-v4", {"terminate_when_unhealthy": False}),
    ("HumanoidStandup-v5", {"impact_cost_weight": 0.1, "impact_cost_range": (-1.0, 2.0)}),
    ("HumanoidStandup-v5", {"exclude_current_positions_from_observation": False}),
    ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.5}),
    ("Pusher-v5", {"reward_near_weight": 2.0, "reward_control_weight": 0.5}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.15}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.0, "reset_noise_scale": 0.3}),
]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_steps_ends_and_resets_are_gymnasiums(name):
    found = compare(name, num_envs=3, steps=110)

    assert found.observation <= TOLERANCE
    assert found.reward <= TOLERANCE
    assert found.terms <= TOLERANCE
    assert (found.compared == 0) == (name in GIVES_NO_TERMS)
    if "Cheetah" not in name and "Swimmer" not in name and "Standup" not in name:
        assert found.ended


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
def test_keyword_arguments_mean_what_they_mean_in_gymnasium(name, kwargs):
    found = compare(name, num_envs=2, steps=60, kwargs=kwargs, seed=5)

    assert found.observation <= TOLERANCE
    assert found.reward <= TOLERANCE
    assert found.terms <= TOLERANCE


# Version 4 is said to be out of date.
@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("name", ["Hopper-v5", "Reacher-v4"])
def test_some_robots_are_reset_as_gymnasiums_are(name):
    generator, n = np.random.default_rng(0), 3
    envs = gymnasium.make_vec(f"fastrl/{name}", n, max_episode_steps=15)
    singles = [gymnasium.make(name, max_episode_steps=15) for _ in range(n)]
    first = [single.reset(seed=4 + index)[0] for index, single in enumerate(singles)]
    assert np.array_equal(envs.reset(seed=4)[0], first)
    envs.action_space.seed(0)
    for _ in range(40):
        chosen, seed = generator.random(n) < 0.3, [None, 7][generator.integers(2)]
        if chosen.any():
            seen, _ = envs.reset(seed=seed, options={"reset_mask": chosen})
            for place, index in enumerate(np.flatnonzero(chosen)):
                own = None if seed is None else seed + place
                assert np.array_equal(seen[index], singles[index].reset(seed=own)[0])
        actions = envs.action_space.sample()
        seen, rewards, *_ = envs.step(actions)
        for index, single in enumerate(singles):
            observation, reward, *ends, _ = single.step(actions[index])
            assert rewards[index] == pytest.approx(reward, abs=TOLERANCE)
            observation = single.reset()[0] if any(ends) else observation
            assert np.abs(seen[index] - observation).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_thousand_steps_from_a_hundred_random_states_are_gymnasiums(name):
    found = compare(name, num_envs=100, steps=1000, seed=1000)

    assert found.observation <= TOLERANCE
    assert found.reward <= TOLERANCE
    assert found.terms <= TOLERANCE
    assert found.ended


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", ["Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Hopper-v4", "Humanoid-v4"]
)
def test_robots_that_lie_on_the_ground_stay_gymnasiums(name):
    kwargs = {"terminate_when_unhealthy": False, "reset_noise_scale": 0.3}

    found = compare(name, num_envs=25, steps=1000, kwargs=kwargs, seed=2000)

    assert found.observation <= TOLERANCE
    assert found.reward <= TOLERANCE
