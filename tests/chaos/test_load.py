"""Too many workers, slow ones, and one that keeps all others waiting: nothing starves or grows."""

from __future__ import annotations

import time

import psutil
import pytest
import torch

from fastrl.sampling import Deadlines, FaultPolicy, ProcessSampler
from fastrl.spec import Topology
from fastrl.system import usable_cores
from tests.sampling.counting import CountingEnvs, CountingPolicy, Ledger, make_plan, weights

MANY = min(4 * usable_cores(), 16)
LENGTH, ROLLOUTS, WARM_UP = 6, 12, 4
SLOW_S = 0.005
"""A hundred times as long as a step of the counting environments takes."""


class OneSlow(CountingEnvs):
    """The environments of the first worker are slow, those of the others are not."""

    def reset(self, seeds, observation):
        super().reset(seeds, observation)
        self._is_slow = make_plan(Topology(2, 1), LENGTH).env_seeds(0, 0)[0] in seeds

    def step(self, views):
        if self._is_slow:
            time.sleep(SLOW_S)
        super().step(views)


class SlowPolicy(CountingPolicy):
    """Takes as long as a large network on a busy machine."""

    def act(self, observation, noise):
        time.sleep(SLOW_S)
        return super().act(observation, noise)


def press(plan, *, asynchronous, learn_s=0.0):
    """Sample and check every number; return the rollouts' versions and faults, and what grew."""
    faults, versions = [], []
    sampler = ProcessSampler(
        plan,
        weights(1),
        asynchronous=asynchronous,
        deadlines=Deadlines(100.0, 60.0, 60.0, 60.0),
        faults=FaultPolicy(10, faults.append),
        debug=True,
    )
    with sampler:
        ledger = Ledger(plan)
        for newest in range(1, ROLLOUTS + 1):
            rollout = sampler.collect()
            ledger.check(rollout)
            assert torch.equal(rollout.log_prob, rollout.policy_version.float())
            versions.append((newest, *rollout.policy_version.aminmax()))
            time.sleep(learn_s)
            # No worker is further ahead than the bank that it may fill meanwhile.
            steps = steps_of_env_workers(sampler)
            collected = newest * LENGTH * plan.topology.envs_per_worker
            ahead = LENGTH * plan.topology.envs_per_worker if asynchronous else 0
            assert all(collected <= each <= collected + ahead for each in steps)
            sampler.publish(weights(newest + 1))
            if newest == WARM_UP:
                before = held(sampler)
        for name, counts in held(sampler).items():
            assert all(now <= then for now, then in zip(counts, before[name], strict=True)), name
    assert not faults
    for newest, oldest, latest in versions:
        assert newest - (2 if asynchronous else 0) <= oldest <= latest <= newest


def steps_of_env_workers(sampler):
    return sampler.stats().env_steps[: sampler.topology.num_env_workers].tolist()


def held(sampler):
    """Descriptors and threads of every process."""
    found = {"learner": psutil.Process()}
    found |= {name: psutil.Process(pid) for name, pid in sampler.pids().items()}
    return {name: (each.num_fds(), each.num_threads()) for name, each in found.items()}


@pytest.mark.parametrize(("num_model_workers", "asynchronous"), [(0, False), (1, True)])
def test_four_workers_per_core(num_model_workers, asynchronous):
    press(make_plan(Topology(2, MANY, num_model_workers), LENGTH), asynchronous=asynchronous)


def test_slow_learner():
    press(make_plan(Topology(4, 2, 1, 2), LENGTH), asynchronous=True, learn_s=0.05)


@pytest.mark.parametrize("lock_step", [False, True])
def test_slow_model_worker(lock_step):
    plan = make_plan(Topology(4, 3, 1, 2), LENGTH, build_model=SlowPolicy, lock_step=lock_step)
    press(plan, asynchronous=True)


@pytest.mark.parametrize(
    ("topology", "asynchronous"),
    [(Topology(2, 3), False), (Topology(2, 3, 1), True)],
    ids=str,
)
def test_one_environment_a_hundred_times_slower_than_the_rest(topology, asynchronous):
    press(make_plan(topology, LENGTH, build_env=OneSlow), asynchronous=asynchronous)
