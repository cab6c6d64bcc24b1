"""A slow env worker delays no other, and not one of its transitions is lost, doubled or moved."""

import dataclasses
import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch

from fastrl import train
from fastrl.config import SamplerConfig, load_config
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import StateError
from fastrl.errors import ConfigError, EnvError, WorkerError
from fastrl.sampling import FaultPolicy, ProcessSampler, UnevenSampler, make_sampler
from fastrl.shared.rollouts import Episodes
from fastrl.spec import Topology
from tests.sampling import counting, remembering
from tests.sampling.counting import CountingEnvs, Ledger, make_plan, raise_error, weights
from tests.training.clockwork import small_run

TOPOLOGY = Topology(2, 3)  # n and N
LENGTH = 7
DEADLINE_S = 60


class Gated(CountingEnvs):
    """Environments with one of some seeds wait before each step until they are let through."""

    def __init__(self, num_envs, gate, seeds):
        super().__init__(num_envs)
        self._gate, self._seeds, self._taken = gate, seeds, 0

    def step(self, views):
        until_s = time.monotonic() + DEADLINE_S
        while self._state[0, 0] in self._seeds and self._taken >= self._gate.stat().st_size:
            assert time.monotonic() < until_s
            time.sleep(0.001)
        self._taken += 1
        super().step(views)


def let_through(gate, steps):
    """Let environments make so many steps since their start; the size of the file tells them."""
    with gate.open("ab") as file:
        file.truncate(steps)


def with_envs(plan, build):
    """Return a plan whose environments are built so; the last worker's seeds are given to it."""
    seeds = frozenset(plan.env_seeds(plan.topology.num_env_workers - 1, 0))
    return dataclasses.replace(plan, build_env=lambda num_envs: build(num_envs, seeds))


class Ledgers:
    """One ledger per env worker: its parts must follow each other, however far apart they come."""

    def __init__(self, plan):
        self._topology, size = plan.topology, plan.topology.envs_per_worker
        self.parts = [0] * plan.topology.num_env_workers
        self._each = [
            Ledger(dataclasses.replace(plan, topology=Topology(size, 1, first_env=worker * size)))
            for worker in range(plan.topology.num_env_workers)
        ]

    def check(self, rollout, faults=False):
        size, slots = self._topology.envs_per_worker, rollout.slots.tolist()
        assert slots == sorted(set(slots))
        assert rollout.reward.shape == (LENGTH, len(slots))
        for first in range(0, len(slots), size):
            worker = slots[first] // size
            assert slots[first : first + size] == [*range(worker * size, (worker + 1) * size)]
            part = columns(rollout, first, size, self.parts[worker])
            self._each[worker].check(part, faults=faults)
            self.parts[worker] += 1


def columns(rollout, first, size, index):
    """Return some columns of a rollout as one by itself."""
    at = slice(first, first + size)
    episodes = rollout.episodes
    own = (episodes.slot >= at.start) & (episodes.slot < at.stop)
    return dataclasses.replace(
        rollout,
        **{name: tensor[:, at] for name, tensor in rollout.fields.items()},
        episodes=Episodes(
            episodes.returns[own],
            episodes.lengths[own],
            episodes.end_step[own],
            episodes.slot[own] - first,
        ),
        restarted=rollout.restarted[at],
        slots=None,
        index=index,
    )


def test_a_worker_that_stands_still_delays_no_other_and_loses_nothing(tmp_path):
    gate = tmp_path / "steps"
    let_through(gate, 0)
    plan = with_envs(make_plan(TOPOLOGY, LENGTH), lambda n, seeds: Gated(n, gate, seeds))
    ledgers = Ledgers(plan)
    with UnevenSampler(plan, weights(1), wait=0.5, debug=True) as sampler:
        for version in range(2, 12):
            rollout = sampler.collect()
            ledgers.check(rollout)
            assert rollout.slots.tolist() == [0, 1, 2, 3]
            assert torch.equal(rollout.log_prob, rollout.policy_version.float())
            sampler.publish(weights(version))
        assert ledgers.parts == [10, 10, 0]
        let_through(gate, 10**6)
        until_s = time.monotonic() + DEADLINE_S
        while ledgers.parts[2] < 5:
            assert time.monotonic() < until_s
            rollout = sampler.collect()
            ledgers.check(rollout)
            # Each part has the weights of its first step.
            assert (rollout.policy_version == rollout.policy_version[0]).all()


def test_slow_environments_contribute_the_steps_they_make(tmp_path):
    """One step for each rollout, of which the others fill all: it has a part after 7 of them."""
    gate, rollouts = tmp_path / "steps", 0
    let_through(gate, 0)
    plan = make_plan(Topology(1, 4), LENGTH)
    plan = with_envs(plan, lambda n, seeds: Gated(n, gate, seeds))
    ledgers = Ledgers(plan)
    with UnevenSampler(plan, weights(1), wait=0.75) as sampler:
        while ledgers.parts[-1] < 3:
            ledgers.check(sampler.collect())
            rollouts += 1
            let_through(gate, rollouts)
        stats = sampler.stats()
    *fast, slow = ledgers.parts
    assert rollouts > LENGTH * slow
    # A rollout waits for three workers, so one of the others is missing at most where it has one.
    assert min(fast) >= rollouts - slow
    assert stats.env_steps[-1] <= rollouts
    assert min(stats.env_steps[:-1]) >= LENGTH * (rollouts - slow)


@pytest.mark.parametrize("policy", [counting, remembering], ids=["counting", "with a memory"])
def test_with_all_workers_it_samples_what_one_sampler_samples(policy):
    by_slot = dataclasses.replace(TOPOLOGY, by_slot=True)
    build = policy.make_plan if policy is counting else policy.plan_of
    plan = build(by_slot, LENGTH)
    with (
        UnevenSampler(plan, policy.weights(1), wait=1.0) as uneven,
        ProcessSampler(plan, policy.weights(1), asynchronous=True) as whole,
    ):
        for _ in range(6):
            one, other = uneven.collect(), whole.collect()
            for name, tensor in one.fields.items():
                assert torch.equal(tensor, other.fields[name]), name
            assert torch.equal(one.restarted, other.restarted)
            for name in ("returns", "lengths", "end_step", "slot"):
                assert np.array_equal(getattr(one.episodes, name), getattr(other.episodes, name))


def test_a_worker_that_was_killed_is_replaced_and_named():
    plan, faults = make_plan(TOPOLOGY, LENGTH), []
    ledgers = Ledgers(plan)
    policy = FaultPolicy(max_restarts=3, on_fault=faults.append)
    with UnevenSampler(plan, weights(1), wait=0.5, faults=policy) as sampler:
        while min(ledgers.parts) < 2:
            ledgers.check(sampler.collect(), faults=True)
        os.kill(sampler.pids()["env-worker-2"], signal.SIGKILL)
        before, until_s = ledgers.parts[2], time.monotonic() + DEADLINE_S
        while ledgers.parts[2] < before + 6:
            assert time.monotonic() < until_s
            ledgers.check(sampler.collect(), faults=True)
    (fault,) = faults
    assert fault.worker == "env-worker-2"
    assert fault.cause.startswith("env-worker-2 was killed")
    assert [suspect.env for suspect in fault.suspects] == [4, 5]


def test_the_error_of_a_worker_names_it_and_ends_all():
    plan = make_plan(TOPOLOGY, LENGTH)
    last = frozenset(plan.env_seeds(2, 0))

    class Failing(CountingEnvs):
        def step(self, views):
            if self._state[0, 0] in last:
                raise_error()
            super().step(views)

    plan = dataclasses.replace(plan, build_env=Failing)
    with UnevenSampler(plan, weights(1), wait=0.5) as sampler:
        with pytest.raises(WorkerError, match="env-worker-2 failed") as caught:
            any(sampler.collect().slots is None for _ in itertools.count())
        assert caught.value.worker == "env-worker-2"
        assert sampler.pids() == {}


def test_pause_calls_and_states():
    plan = make_plan(TOPOLOGY, LENGTH)
    ledgers = Ledgers(plan)
    with UnevenSampler(plan, weights(1), wait=0.5) as sampler:
        assert sampler.get_state() is None
        for _ in range(3):
            ledgers.check(sampler.collect())
            sampler.pause()
            before = sampler.stats().env_steps
            time.sleep(0.05)
            assert np.array_equal(sampler.stats().env_steps, before)
        with pytest.raises(StateError, match="always in progress"):
            sampler.get_state()
        with pytest.raises(StateError, match="cannot continue"):
            sampler.set_state({})
        with pytest.raises(EnvError, match="has no method 'fly'"):
            sampler.call_envs([EnvCall("fly")])
        ledgers.check(sampler.collect())
        assert sampler.stats(details=True).memory.keys() == sampler.pids().keys()


@pytest.mark.parametrize(
    ("topology", "wait", "told"),
    [
        (Topology(2, 2, 1), 0.5, "with model workers"),
        (dataclasses.replace(TOPOLOGY, by_slot=True, run_envs=12), 0.5, "with several learners"),
        (TOPOLOGY, 1.5, "wait must be at most 1"),
        (TOPOLOGY, 0, "wait must be a finite number above 0"),
    ],
)
def test_what_it_cannot_sample_is_an_error(topology, wait, told):
    with pytest.raises(ConfigError, match=told):
        UnevenSampler(make_plan(topology, LENGTH), weights(1), wait=wait)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "sampler.mode: must be async with sampler.wait: 0.5, got sync"),
        (["sampler.mode=async", "sampler.num_model_workers=1"], "num_model_workers: must be 0"),
        (["sampler.mode=async", "cluster={}"], "cluster: must be null with sampler.wait: 0.5"),
        (
            ["sampler.mode=async", "algorithm={name: bc}", "dataset.path=somewhere"],
            "algorithm.name: must be an algorithm without a sampler of its own, got bc",
        ),
        (["sampler.mode=async", "sampler.wait=2"], "sampler.wait: must be a number above 0"),
    ],
)
def test_settings_that_exclude_it_are_named(overrides, told):
    with pytest.raises(ConfigError, match=told):
        load_config(None, ["env.id=CartPole-v1", "sampler.wait=0.5", *overrides])


def test_it_is_chosen_by_the_configuration_and_learnt_from(tmp_path):
    sampler = SamplerConfig(
        envs_per_worker=2, num_env_workers=3, rollout_length=16, mode="async", wait=0.4
    )
    config = small_run(tmp_path / "run", sampler=sampler)
    with make_sampler(config) as made:
        assert isinstance(made, UnevenSampler)
    # The scales of rewards belong to slots, of which not all are in every rollout.
    algorithm = {"name": "appo", "normalize_rewards": True, "minibatch_size": 16}
    tree = config.model_dump() | {"algorithm": algorithm}
    done = train(type(config).model_validate(tree))
    assert done.outcome.steps >= config.total_steps
