"""Seeds and noise depend on how far a run is, not on how often it was stopped."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastrl.errors import ConfigError
from fastrl.sampling import SerialSampler
from fastrl.spec import Topology
from tests.sampling.counting import make_plan

PLAN = make_plan(Topology(4, 2, 1, 2), 6)


def resumed(first_rollout):
    return dataclasses.replace(PLAN, first_rollout=first_rollout)


def test_missing_device_is_told_before_any_worker_starts():
    with pytest.raises(ConfigError, match=r"^sampler\.device: no device 'cuda:99': torch finds "):
        dataclasses.replace(PLAN, devices=("cpu", "cuda:99"))
    assert dataclasses.replace(PLAN, devices=("cuda:99",), build_model=None).build_model is None


def draw(plan, policy, rollout):
    return torch.rand(20, generator=plan.policy_generator(policy, rollout)).tolist()


def test_noise_of_a_rollout_is_the_same_in_a_resumed_run():
    assert draw(PLAN, 0, 5) == draw(resumed(3), 0, 2) == draw(resumed(5), 0, 0)


def test_noise_differs_between_rollouts_policies_and_seeds():
    other_seed = dataclasses.replace(PLAN, seed=PLAN.seed + 1)
    drawn = [draw(PLAN, 0, 0), draw(PLAN, 0, 1), draw(PLAN, 1, 0), draw(other_seed, 0, 0)]
    assert len({tuple(noise) for noise in drawn}) == 4


def test_environments_of_a_resumed_run_have_new_seeds():
    seeds = [
        seed
        for plan in (PLAN, resumed(1), resumed(2))
        for group in plan.topology.all_groups()
        for seed in plan.env_seeds(*group)
    ]
    assert len(set(seeds)) == len(seeds) == 24


def test_sampler_of_a_resumed_run_draws_the_actions_it_would_have_drawn():
    with SerialSampler(PLAN) as whole, SerialSampler(resumed(2)) as rest:
        for _ in range(2):
            whole.collect()
        # The policy of these environments ignores what it observes.
        assert torch.equal(whole.collect().action, rest.collect().action)
