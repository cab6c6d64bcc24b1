"""Numbers that are not finite are rejected wherever they arise, and large ones are not."""

import dataclasses
import os

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import EnvError
from fastrl.sampling import FaultPolicy, ProcessSampler, SerialSampler
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.plan import SamplingPlan

LENGTH = 8
FLOATS = EnvSpec("floats", spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2))
# n, N, M, groups
TOPOLOGIES = [Topology(4, 2, 0, 1), Topology(4, 2, 0, 2), Topology(4, 2, 1, 2)]


class Floats:
    """Observes and rewards one number, but for one step."""

    def __init__(self, num_envs, usual, odd, field, bad_step):
        self.spec, self.num_envs = FLOATS, num_envs
        self._usual, self._odd, self._field = usual, odd, field
        self._bad_step = bad_step

    def reset(self, seeds, observation):
        self._step, self._is_first = 0, False
        observation[0][:] = self._usual

    def step(self, views):
        views.reward[:] = views.observation[0][:] = self._usual
        views.terminated[:] = views.truncated[:] = False
        if self._step == 2 * LENGTH + self._bad_step:
            (views.reward if self._field == "reward" else views.observation[0])[1] = self._odd
        self._step += 1

    def close(self):
        pass


def plan_of(topology, usual=1.0, odd=1.0, field="reward", bad_step=3):
    return SamplingPlan(
        env_spec=FLOATS,
        topology=topology,
        rollout_length=LENGTH,
        seed=0,
        build_env=lambda num_envs: Floats(num_envs, usual, odd, field, bad_step),
        build_model=None,
    )


@pytest.mark.parametrize(
    ("topology", "asynchronous", "field"),
    [
        (TOPOLOGIES[0], False, "observation"),
        (TOPOLOGIES[1], True, "reward"),
        (TOPOLOGIES[2], False, "reward"),
        (TOPOLOGIES[2], True, "observation"),
    ],
    ids=str,
)
def test_bad_number_in_one_worker_is_named(topology, asynchronous, field):
    odd = float("-inf") if asynchronous else float("nan")
    with ProcessSampler(
        plan_of(topology, odd=odd, field=field), asynchronous=asynchronous
    ) as sampler:
        for _ in range(2):
            sampler.collect()
        step = 3 + (field == "observation")
        told = rf"{field} is {odd} at step {step} of rollout 2, in env 1 of 'floats'"
        with pytest.raises(EnvError, match=told):
            sampler.collect()


def test_bad_number_of_a_worker_that_was_replaced_is_found():
    faults = FaultPolicy(max_restarts=10)
    plan = plan_of(Topology(2, 1), odd=float("nan"), bad_step=1)

    def build(num_envs):
        envs = Floats(num_envs, 1.0, float("nan"), "reward", 1)
        step = envs.step

        def end_after_the_bad_step(views):
            step(views)
            if envs._step == 2 * LENGTH + 5:
                os._exit(1)

        envs.step = end_after_the_bad_step
        return envs

    with ProcessSampler(dataclasses.replace(plan, build_env=build), faults=faults) as sampler:
        for _ in range(2):
            sampler.collect()
        with pytest.raises(EnvError, match="reward is nan at step 1 of rollout 2, in env 1"):
            sampler.collect()


def test_serial_sampler_names_the_same_number():
    with SerialSampler(plan_of(TOPOLOGIES[0], odd=float("nan"))) as sampler:
        for _ in range(2):
            sampler.collect()
        with pytest.raises(EnvError, match="reward is nan at step 3 of rollout 2, in env 1 of"):
            sampler.collect()


class Huge(gymnasium.Env):
    """Observes and rewards numbers of float64, one of which is beyond float32."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, huge):
        self._huge = huge

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}

    def step(self, action):
        reward, observed = ((1e300 if self._huge == name else 0.0) for name in ("reward", "obs"))
        return np.array([observed]), reward, False, False, {}


@pytest.mark.parametrize("kind", [ProcessSampler, SerialSampler])
@pytest.mark.parametrize(("huge", "told"), [("reward", "reward is inf"), ("obs", "observation is")])
def test_numbers_beyond_float32_are_reported_by_the_check_alone(kind, huge, told, capfd):
    factory = EnvFactory(lambda: Huge(huge))
    plan = dataclasses.replace(plan_of(TOPOLOGIES[0]), env_spec=factory.probe())
    plan = dataclasses.replace(plan, build_env=factory.batched)
    with kind(plan) as sampler, pytest.raises(EnvError, match=told):
        sampler.collect()
    assert "overflow" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", [ProcessSampler, SerialSampler])
def test_numbers_whose_sums_overflow_are_no_bad_numbers(kind):
    with kind(plan_of(TOPOLOGIES[2], usual=3e38, odd=3e38)) as sampler:
        for _ in range(3):
            assert (sampler.collect().reward > 1e38).all()


def test_nothing_is_checked_where_bad_numbers_are_allowed():
    for kind in (ProcessSampler, SerialSampler):
        plan = plan_of(TOPOLOGIES[2], odd=float("nan"))
        with kind(plan, check_numbers=False) as sampler:
            assert sum(bool(sampler.collect().reward.isnan().any()) for _ in range(3)) == 1
