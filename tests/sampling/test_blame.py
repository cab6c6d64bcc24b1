"""Every failure of a sampler names the environment, or the policy, that is to blame."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import EnvError, WorkerError
from fastrl.models import build_model
from fastrl.sampling import FaultPolicy, ProcessSampler, SerialSampler
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.plan import SamplingPlan
from tests.misfits import GOOD, MISFITS, RESET_MISFITS, MisfitEnv

# Of two workers with two groups of two environments.
TOPOLOGY = Topology(4, 2, 0, 2)


def plan_of(kind, odd, in_reset=None, **changes):
    spec = EnvSpec("misfit", MisfitEnv.observation_space, MisfitEnv.action_space)
    plan = SamplingPlan(
        env_spec=spec,
        topology=TOPOLOGY,
        rollout_length=4,
        seed=0,
        build_env=lambda num_envs: None,
        build_model=None,
    )
    seeds = [s for place in TOPOLOGY.all_groups() for s in plan.env_seeds(*place)]
    factory = EnvFactory(partial(MisfitEnv, kind, seeds[odd], in_reset))
    return dataclasses.replace(plan, build_env=factory.batched, **changes)


@pytest.mark.parametrize("kind", MISFITS)
def test_misfit_of_a_step(kind):
    odd = 6 if len(kind) % 2 else 3
    told = pytest.raises(EnvError, match=rf"^env {odd} (of|returned) ?.*")
    with told as caught, SerialSampler(plan_of(kind, odd)) as sampler:
        sampler.collect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", RESET_MISFITS)
def test_misfit_of_a_reset(kind):
    in_reset = len(kind) % 2
    told = pytest.raises(EnvError, match=r"^env 5 (of|returned) ?.*")
    with told, SerialSampler(plan_of(kind, 5, in_reset)) as sampler:
        sampler.collect()


@pytest.mark.parametrize("kind", ["shape", "two flags"])
def test_fault_of_a_worker_names_the_environment_its_seed_and_action(kind):
    faults = []
    plan = plan_of(kind, 6)
    policy = FaultPolicy(1, faults.append)
    with ProcessSampler(plan, faults=policy) as sampler:
        sampler.collect()
    (fault,) = faults
    (suspect,) = fault.suspects
    assert (suspect.env, suspect.seed) == (6, plan.env_seeds(1, 1)[0])
    assert fault.step == 1


class Boundless(MisfitEnv):
    """Takes any action and returns it as its observation, or raises."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, raises):
        super().__init__("error", None)
        self.raises = raises

    def step(self, action):
        if self.raises and not np.isfinite(action).all():
            raise ValueError("bad action")
        return action, *GOOD[1:]


def diverged(spec):
    """A policy whose last layer overflows."""
    model = build_model(spec, ModelConfig(hidden_sizes=(4,)))
    with torch.no_grad():
        model.actor_head.bias.fill_(np.inf)
    return model


def boundless(raises, num_model_workers=0):
    factory = EnvFactory(partial(Boundless, raises))
    spec = factory.probe()
    return SamplingPlan(
        env_spec=spec,
        topology=Topology(2, 1, num_model_workers),
        rollout_length=3,
        seed=0,
        build_env=factory.batched,
        build_model=lambda: diverged(spec),
    )


def test_error_after_an_action_that_is_not_finite_blames_the_policy():
    told = r"^env 0 of .* was given the action .*inf.* not finite: the policy is at fault, not the"
    with pytest.raises(EnvError, match=told), SerialSampler(boundless(raises=True)) as sampler:
        sampler.collect()
    plan = dataclasses.replace(boundless(raises=False), check_steps=True)
    with pytest.raises(EnvError, match=told), SerialSampler(plan) as sampler:
        sampler.collect()


def test_bad_numbers_of_a_rollout_are_traced_to_the_action_that_came_first():
    told = r"^action is inf at step 0 of rollout 0, in env 0 of .*; the policy returned it"
    with pytest.raises(EnvError, match=told), SerialSampler(boundless(raises=False)) as sampler:
        sampler.collect()


def test_worker_blames_the_policy_as_well():
    told = r"EnvError: env 0 of .* the policy is at fault, not the environment"
    with (
        pytest.raises(WorkerError, match=told),
        ProcessSampler(boundless(raises=True)) as sampler,
    ):
        sampler.collect()
