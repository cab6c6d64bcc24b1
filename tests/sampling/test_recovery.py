"""Workers that fail are replaced, and not one transition is misplaced, lost or doubled."""

import dataclasses
import itertools
import json
import os
import random
import signal

import pytest
import torch

from fastrl.errors import EnvError, WorkerError
from fastrl.sampling import Deadlines, ProcessSampler
from fastrl.sampling.worker_pool import FaultPolicy
from fastrl.spec import Topology
from tests.sampling.counting import CountingEnvs, Ledger, make_plan, raise_error, weights
from tests.sampling.faulty import (
    HANG,
    Failures,
    Point,
    with_failing_env_workers,
    with_failing_model_workers,
)

# n, N, M, groups
TOPOLOGIES = [
    pytest.param(topology, marks=() if is_usual else pytest.mark.slow)
    for num_env_workers, num_model_workers, groups in itertools.product((1, 2), range(3), (1, 2))
    if num_model_workers <= num_env_workers
    for topology in [Topology(4, num_env_workers, num_model_workers, groups)]
    for is_usual in [num_env_workers == groups == 2 and num_model_workers < 2]
]
LENGTH = 7


def collect_checked(sampler, plan, rollouts):
    """Check rollouts, publishing weights in between."""
    ledger = Ledger(plan)
    for version in range(2, rollouts + 2):
        rollout = sampler.collect()
        ledger.check(rollout, faults=True)
        assert torch.equal(rollout.log_prob, rollout.policy_version.float())
        assert (rollout.policy_version >= 1).all()
        assert (rollout.policy_version <= version - 1).all()
        sampler.publish(weights(version))
    return ledger


def sample_with_env_faults(plan, failures, faults, asynchronous, rollouts):
    plan = with_failing_env_workers(plan, failures)
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    with ProcessSampler(
        plan, weights(1), asynchronous=asynchronous, faults=policy, debug=True
    ) as sampler:
        return collect_checked(sampler, plan, rollouts)


def env_points(topology, asynchronous):
    """Each place once, at a moment that is the same in every run of the test."""
    pick = random.Random(f"{topology} {asynchronous}")
    posts = (8, 20) if topology.num_model_workers else (1, 3)
    between = {"step": (6, 25), "step done": (2, 25), "before post": posts, "post": posts}
    places = ["before post", "post", "rollout begun", "take over"]
    pick.shuffle(places)
    # First what fails after a step: a worker that has never made one is not replaced.
    return [
        Point(where, pick.randint(*between.get(where, (1, 2))), pick.randrange(3))
        for where in ("step done", "step", *places)
    ]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_env_workers_that_fail_are_replaced(topology, asynchronous, tmp_path):
    failures, faults = Failures(tmp_path, env_points(topology, asynchronous)), []
    plan = make_plan(topology, LENGTH)
    ledger = sample_with_env_faults(plan, failures, faults, asynchronous, rollouts=25)
    assert failures.happened == 6
    assert len(faults) >= 4
    assert ledger.cuts + ledger.lost >= topology.envs_per_worker
    assert all(fault.worker.startswith("env-worker-") for fault in faults)


@pytest.mark.parametrize(
    ("topology", "asynchronous", "lock_step"),
    [
        pytest.param(Topology(4, 2, 1, 2), True, False),
        pytest.param(Topology(4, 2, 2, 1), False, False),
        pytest.param(Topology(4, 2, 1, 2), True, True),
        pytest.param(Topology(4, 2, 1, 1), False, False, marks=pytest.mark.slow),
        pytest.param(Topology(4, 2, 1, 2), False, False, marks=pytest.mark.slow),
        pytest.param(Topology(4, 2, 2, 2), True, True, marks=pytest.mark.slow),
        pytest.param(Topology(4, 2, 1, 1), False, True, marks=pytest.mark.slow),
        pytest.param(Topology(4, 2, 2, 2), False, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_model_workers_that_fail_are_replaced(topology, asynchronous, lock_step, tmp_path):
    pick = random.Random(f"{topology} {asynchronous} {lock_step}")
    points = [
        Point(where, pick.randint(2, 20), pick.randrange(3))
        for where in ("before post", "post", "serve", "before post", "post")
    ]
    points.append(Point("policy begun", 1))
    failures, faults = Failures(tmp_path, points), []
    plan = make_plan(topology, LENGTH, lock_step=lock_step)
    plan = with_failing_model_workers(plan, failures)
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    with ProcessSampler(
        plan, weights(1), asynchronous=asynchronous, faults=policy, debug=True
    ) as sampler:
        ledger = collect_checked(sampler, plan, rollouts=20)
    assert ledger.cuts == ledger.lost == 0
    assert len(faults) >= 4
    assert {fault.worker[:12] for fault in faults} == {"model-worker"}


def test_replaced_model_worker_chooses_the_same_actions():
    plan = make_plan(Topology(4, 2, 1, 2), LENGTH, lock_step=True)
    with ProcessSampler(plan, weights(1)) as sampler:
        undisturbed = [sampler.collect().action.clone() for _ in range(4)]
    faults = []
    policy = FaultPolicy(max_restarts=10, on_fault=faults.append)
    with ProcessSampler(plan, weights(1), faults=policy) as sampler:
        for expected in undisturbed:
            assert torch.equal(sampler.collect().action, expected)
            os.kill(sampler.pids()["model-worker-0"], signal.SIGKILL)
    assert len(faults) == len(undisturbed) - 1


@pytest.mark.parametrize("topology", [Topology(4, 2, 0, 1), Topology(4, 2, 1, 2)], ids=str)
def test_worker_that_hangs_is_replaced_at_its_deadline_and_no_other_one(topology, tmp_path):
    failures, faults = Failures(tmp_path, [Point("step done", 10, HANG)]), []
    plan = make_plan(topology, LENGTH)
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    with ProcessSampler(
        with_failing_env_workers(plan, failures),
        weights(1),
        faults=policy,
        deadlines=Deadlines(step_timeout_s=2.0, reset_timeout_s=2.0),
    ) as sampler:
        ledger = collect_checked(sampler, plan, rollouts=6)
    assert ledger.cuts + ledger.lost == 4
    assert [fault.worker[:11] for fault in faults] == ["env-worker-"]
    assert "made no env step within 2 s; raise env.step_timeout_s" in faults[0].cause


def test_model_worker_that_hangs_is_replaced_and_no_env_worker(tmp_path):
    failures, faults = Failures(tmp_path, [Point("serve", 10, HANG)]), []
    plan = make_plan(Topology(4, 2, 1, 2), LENGTH)
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    deadlines = Deadlines(stall_timeout_s=2.0, step_timeout_s=60.0)
    plan = with_failing_model_workers(plan, failures)
    with ProcessSampler(plan, weights(1), faults=policy, deadlines=deadlines) as sampler:
        ledger = collect_checked(sampler, plan, rollouts=6)
    assert ledger.cuts == ledger.lost == 0
    assert [fault.worker for fault in faults] == ["model-worker-0"]


def test_environment_that_always_fails_ends_the_run_with_its_cause(tmp_path):
    plan = make_plan(
        Topology(4, 2), LENGTH, build_env=lambda n: CountingEnvs(n, fault=raise_error, fault_at=9)
    )
    faults = []
    policy = FaultPolicy(max_restarts=2, on_fault=faults.append)
    with ProcessSampler(plan, faults=policy) as sampler:
        with pytest.raises(WorkerError, match="the simulator exploded") as caught:
            collect_for_ever(sampler)
        assert not sampler.pids()
    assert f"3 failures of {caught.value.worker} within an hour" in str(caught.value)
    assert "faults.max_restarts is 2" in str(caught.value)
    assert "in raise_error" in caught.value.remote_traceback
    assert 2 <= len(faults) <= 4


def test_environment_that_cannot_be_built_again_ends_the_run(tmp_path):
    failures = Failures(tmp_path, [Point("step done", 10), *[Point("rollout begun", 1)] * 9])
    plan = make_plan(Topology(4, 1), 50)
    plan = with_failing_env_workers(plan, failures)
    plan = dataclasses.replace(plan, build_env=failing_to_build(plan.build_env, failures))
    with (
        ProcessSampler(plan, faults=FaultPolicy(max_restarts=1000)) as sampler,
        pytest.raises(WorkerError, match=r"no licence left; .* 3 times in a row before its first"),
    ):
        sampler.collect()


def failing_to_build(build_env, failures):
    def build(num_envs):
        envs = build_env(num_envs)
        if failures.started() > 1:
            raise EnvError("no licence left")
        return envs

    return build


def collect_for_ever(sampler):
    while True:
        sampler.collect()


def test_fault_names_the_environment_its_seed_episode_and_action():
    faults = []
    plan = make_plan(Topology(4, 2, 1, 2), LENGTH, build_env=Blaming)
    policy = FaultPolicy(max_restarts=1000, on_fault=faults.append)
    with ProcessSampler(plan, faults=policy) as sampler:
        while len(faults) < 4:
            sampler.collect()
    starts = {}
    for fault in faults:
        worker = int(fault.worker[-1])
        starts[worker] = starts.get(worker, -1) + 1
        (suspect,) = fault.suspects
        group = suspect.env % 4 // 2
        assert suspect.env in plan.topology.env_index(worker, group)
        seeds = plan.env_seeds(worker, group, starts[worker])
        assert suspect.seed == seeds[suspect.env % 2]
        assert f"env {suspect.env} of 'x' raised: state" in fault.cause
        told = fault.cause.split("state ")[1]
        assert told == f"[{suspect.seed}, {suspect.episode}] action {suspect.action}"
        assert f"env {suspect.env} (seed {suspect.seed}, episode {suspect.episode}," in str(fault)
        assert "in step" in fault.remote_traceback
        assert json.loads(json.dumps(fault.to_dict()))["worker"] == fault.worker


class Blaming(CountingEnvs):
    """Its second environment raises in its 20th step, and says what a fault should say."""

    def step(self, views):
        self._steps = getattr(self, "_steps", 0) + 1
        if self._steps == 20:
            action = int(views.action[0][1])
            raise EnvError(
                f"env 1 of 'x' raised: state {self._state[1, :2].tolist()} action {action}"
            )
        super().step(views)


def test_workers_killed_between_rollouts_are_replaced_at_the_next_one():
    faults = []
    policy = FaultPolicy(max_restarts=10, on_fault=faults.append)
    plan = make_plan(Topology(4, 2, 1, 1), LENGTH)
    with ProcessSampler(plan, weights(1), faults=policy) as sampler:
        ledger = Ledger(plan)
        for _ in range(3):
            ledger.check(sampler.collect(), faults=True)
            for pid in sampler.pids().values():
                os.kill(pid, signal.SIGKILL)
        ledger.check(sampler.collect(), faults=True)
    assert len(faults) == 9
    assert ledger.lost == 24
    assert ledger.cuts == 0
