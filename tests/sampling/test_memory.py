"""States of policies follow the episodes of their slots, in every sampler and after failures."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import time

import pytest
import torch

from fastrl.errors import ConfigError, FastrlError
from fastrl.models.inference import EagerEngine, InferenceEngine, StagedEngine
from fastrl.sampling import ProcessSampler, SerialSampler
from fastrl.sampling.worker_pool import FaultPolicy
from fastrl.spec import Topology
from tests.sampling.counting import make_plan
from tests.sampling.faulty import (
    Failures,
    Point,
    with_failing_env_workers,
    with_failing_model_workers,
)
from tests.sampling.remembering import MemoryLedger, Remembering, plan_of, state_at, weights
from tests.sampling.test_recovery import env_points
from tests.sampling.test_samplers import FEW, MIXED, TOPOLOGIES

LENGTH = 6


def assert_follows(sampler, plan, rollouts=5):
    ledger = MemoryLedger(plan)
    for _ in range(rollouts):
        ledger.check(sampler.collect())


@pytest.mark.parametrize("sequence_length", [None, 1, 2, 3])
def test_serial_sampler_resets_states_where_episodes_begin(sequence_length):
    for topology in TOPOLOGIES if sequence_length == 2 else FEW:
        plan = plan_of(topology, LENGTH, sequence_length=sequence_length)
        with SerialSampler(plan, debug=True) as sampler:
            assert_follows(sampler, plan)


@pytest.mark.parametrize(("topology", "asynchronous"), MIXED[-3:], ids=str)
def test_processes_reset_states_where_episodes_begin(topology, asynchronous):
    plan = plan_of(topology, LENGTH, sequence_length=3)
    with ProcessSampler(plan, asynchronous=asynchronous, debug=True) as sampler:
        assert_follows(sampler, plan)


@pytest.mark.parametrize("topology", FEW[-2:], ids=str)
def test_lock_step_processes_equal_the_serial_sampler_bit_for_bit(topology):
    plan = plan_of(topology, LENGTH, lock_step=True, sequence_length=2)
    with SerialSampler(plan) as serial, ProcessSampler(plan) as parallel:
        for _ in range(5):
            one, other = serial.collect().fields, parallel.collect().fields
            for name in one.keys() - {"policy_version"}:
                assert torch.equal(one[name], other[name]), name


def fail(plan, failures, asynchronous, rollouts=20):
    """Collect rollouts in which workers fail, and follow the states; return ledger and faults."""
    faults, ledger = [], MemoryLedger(plan)
    with ProcessSampler(
        failures,
        weights(1),
        asynchronous=asynchronous,
        faults=FaultPolicy(max_restarts=1000, on_fault=faults.append),
        debug=True,
    ) as sampler:
        for version in range(2, rollouts + 2):
            ledger.check(sampler.collect(), faults=True)
            sampler.publish(weights(version))
    return ledger, faults


@pytest.mark.parametrize(
    ("topology", "asynchronous"),
    [(Topology(4, 2, 0, 2), False), (Topology(4, 2, 1, 2), True)],
    ids=str,
)
def test_states_begin_anew_where_env_workers_are_replaced(topology, asynchronous, tmp_path):
    plan = plan_of(topology, LENGTH, sequence_length=2)
    failures = Failures(tmp_path, env_points(topology, asynchronous))
    ledger, faults = fail(plan, with_failing_env_workers(plan, failures), asynchronous)
    assert failures.happened == 6
    assert len(faults) >= 4
    assert ledger.cuts + ledger.lost >= topology.envs_per_worker


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_states_begin_anew_in_whichever_step_a_worker_is_replaced(num_model_workers, tmp_path):
    """Between two rollouts too, where no flag tells that episodes were cut."""
    topology, length = Topology(2, 1, num_model_workers, 2), 3
    plan = plan_of(topology, length, sequence_length=1)
    # Both groups make 6 steps in a rollout, so each worker fails one step later than the last one.
    points = [Point("step done", 8)] * 6 + [Point("rollout begun", at) for at in (1, 2, 3)]
    ledger, faults = fail(
        plan, with_failing_env_workers(plan, Failures(tmp_path, points)), False, 45
    )
    assert len(faults) == len(points)
    assert ledger.cuts
    assert ledger.lost


@pytest.mark.parametrize(
    ("topology", "asynchronous", "lock_step"),
    [
        (Topology(4, 2, 1, 2), True, False),
        (Topology(4, 2, 2, 1), False, False),
        (Topology(4, 2, 1, 2), False, True),
    ],
    ids=str,
)
def test_states_survive_the_model_worker(topology, asynchronous, lock_step, tmp_path):
    pick = random.Random(f"{topology} {asynchronous} {lock_step}")
    points = [
        Point(where, pick.randint(2, 20), pick.randrange(3))
        for where in ("before post", "post", "serve", "before post", "post")
    ]
    plan = plan_of(topology, LENGTH, lock_step=lock_step, sequence_length=3)
    failing = with_failing_model_workers(plan, Failures(tmp_path, points))
    ledger, faults = fail(plan, failing, asynchronous)
    assert ledger.cuts == ledger.lost == 0
    assert len(faults) >= 4


def test_both_kinds_of_workers_may_be_killed_at_any_moment():
    topology = Topology(4, 2, 1, 2)
    plan, pick = plan_of(topology, LENGTH, sequence_length=2), random.Random(0)
    ledger, faults = MemoryLedger(plan), []
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    with ProcessSampler(plan, asynchronous=True, faults=policy, debug=True) as sampler:
        for _ in range(12):
            ledger.check(sampler.collect(), faults=True)
            time.sleep(pick.random() / 50)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pick.choice(list(sampler.pids().values())), signal.SIGKILL)
    assert len(faults) >= 6


def test_states_are_copied_to_another_device_and_back():
    def staged(model, device):
        return StagedEngine(model, torch.device("cpu"))

    plan = plan_of(Topology(4, 2, 1, 2), LENGTH, engine=staged)
    with SerialSampler(plan, debug=True) as sampler:
        assert_follows(sampler, plan)


def test_states_begin_with_the_newest_weights():
    plan = plan_of(Topology(3, 1), LENGTH)
    with SerialSampler(plan) as sampler:
        for constant in (1.0, 2.0, 3.0):
            sampler.publish(weights(0, torch.tensor([0.0, -1.0, constant])))
            rollout = sampler.collect()
            # The first step may be that of an episode that began with the rollout before.
            began = rollout.given[1:, :, 0] == 0
            assert began.any()
            assert (rollout.given[1:][began][:, 2] == constant).all()


def test_states_are_carried_without_a_value():
    plan = plan_of(Topology(4, 2, 0, 2), LENGTH, sequence_length=2)
    plan = dataclasses.replace(plan, build_model=lambda: Remembering(["given"]))
    with SerialSampler(plan, debug=True) as sampler:
        for _ in range(4):
            rollout = sampler.collect()
            assert "value" not in rollout.fields
            expected = state_at(rollout.observation)
            assert torch.equal(rollout.given, expected[:-1])
            assert torch.equal(rollout.policy_state, expected[::2])


class Forgetful(Remembering):
    """Returns no next state."""

    def act(self, observation, noise, state):
        return super().act(observation, noise, state)._replace(state=None)


class Shrinking(Remembering):
    """Returns a state that is too small."""

    def act(self, observation, noise, state):
        step = super().act(observation, noise, state)
        return step._replace(state=step.state[:, :1])


class Diverging(Remembering):
    """Has a state that is not finite after the third step of an episode."""

    def act(self, observation, noise, state):
        step = super().act(observation, noise, state)
        return step._replace(state=torch.where(state[:, :1] < 2, step.state, torch.nan))


class Doubles(Remembering):
    """Begins in states of a dtype that is not stored."""

    def initial_state(self, n):
        return super().initial_state(n).double()


class Flat(Remembering):
    """Begins in a single state."""

    def initial_state(self, n):
        return self.first


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Forgetful, r"Forgetful has a memory: it must return .* state \[2, 3\], but .* no state"),
        (Shrinking, r"with the state \[2, 3\], but returned a state \[2, 1\]$"),
        (
            Diverging,
            r"^policy_state is nan at step (3|4) of rollout 0, in env \d .* policy returned it",
        ),
        (Doubles, r"Doubles.initial_state\(2\) must return \[2, size\] float32, got float64$"),
        (Flat, r"Flat.initial_state\(2\) must return \[2, size\] float32, got \[3\]$"),
    ],
)
def test_states_that_cannot_be_kept_are_one_line(policy, told):
    changes = {"build_model": lambda: policy(["log_prob"]), "sequence_length": 1}
    plan = dataclasses.replace(plan_of(Topology(2, 1), LENGTH), **changes)
    with pytest.raises(FastrlError, match=told), SerialSampler(plan) as sampler:
        sampler.collect()


class Stateless(EagerEngine):
    """An engine that was written for policies without a memory."""

    initial_state = InferenceEngine.initial_state

    def bind(self, observation, noise, out):
        return super().bind(observation, noise, out)

    def bind_values(self, observation, out):
        return super().bind_values(observation, out)


def test_engine_without_states_runs_only_policies_without_a_memory():
    changes = {"engine": lambda model, device: Stateless(model)}
    with SerialSampler(make_plan(Topology(2, 1), LENGTH, **changes)) as sampler:
        assert "policy_state" not in sampler.collect().fields
    told = "^the engine 'Stateless' runs no policies with a memory$"
    with pytest.raises(ConfigError, match=told):
        SerialSampler(plan_of(Topology(2, 1), LENGTH, **changes)).start()


@pytest.mark.parametrize(("length", "told"), [(4, "must divide .* got 4"), (0, "at least 1")])
def test_sequences_divide_the_rollout(length, told):
    with pytest.raises(ConfigError, match=f"^sequence_length {told}|sequence_length.*{told}"):
        plan_of(Topology(2, 1), LENGTH, sequence_length=length)
