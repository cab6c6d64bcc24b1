"""Environments that draw from global random streams: different everywhere, and reproducible."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from fastrl.envs.env_factory import EnvFactory
from fastrl.sampling import FaultPolicy, ProcessSampler, SerialSampler
from fastrl.spec import EnvSpec, PolicyStep, Topology
from fastrl.training.evaluation import EvaluationProtocol, evaluate
from fastrl.workers.plan import SamplingPlan
from tests.global_draws import DrawingEnv, states

SPEC = EnvSpec("drawing", DrawingEnv.observation_space, DrawingEnv.action_space)
LENGTH = 6


def plan_of(topology, **changes):
    plan = SamplingPlan(
        env_spec=SPEC,
        topology=topology,
        rollout_length=LENGTH,
        seed=3,
        build_env=EnvFactory(DrawingEnv).batched,
        build_model=None,
        lock_step=True,
    )
    return dataclasses.replace(plan, **changes)


def numbers(sampler, rollouts=2):
    """Return observations ``[rollouts · (T + 1), B, 3]``."""
    with sampler:
        found = [sampler.collect().observation.clone() for _ in range(rollouts)]
    return torch.cat(found).numpy()


@pytest.mark.parametrize("topology", [Topology(2, 2), Topology(4, 1, 0, 2), Topology(1, 2, 1)])
def test_every_environment_and_every_stream_draws_other_numbers(topology):
    drawn = numbers(SerialSampler(plan_of(topology)))
    # The first observations of a rollout are the last ones of the one before.
    drawn = np.delete(drawn, LENGTH + 1, axis=0)
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("topology", [Topology(2, 1), Topology(2, 2, 1), Topology(2, 2, 0, 2)])
def test_processes_draw_what_the_serial_sampler_draws(topology):
    plan = plan_of(topology)
    assert np.array_equal(numbers(SerialSampler(plan)), numbers(ProcessSampler(plan)))


def test_streams_follow_from_the_seed_and_a_resumed_run_has_others():
    plan = plan_of(Topology(2, 2))
    first = numbers(SerialSampler(plan))
    assert np.array_equal(numbers(SerialSampler(plan)), first)
    for change in ({"seed": 4}, {"first_rollout": 1}):
        other = numbers(SerialSampler(dataclasses.replace(plan, **change)))
        assert not np.isin(other, first).any()


def test_replaced_worker_does_not_repeat_what_was_drawn_before(tmp_path):
    factory = EnvFactory(DrawingEnv, {"fails_once": str(tmp_path / "failed")})
    plan = plan_of(Topology(1, 1), build_env=factory.batched, rollout_length=12)
    sampler = ProcessSampler(plan, faults=FaultPolicy(1, lambda fault: None))
    drawn = numbers(sampler, 1)
    assert (tmp_path / "failed").exists()
    assert len(np.unique(drawn)) == drawn.size


def test_streams_of_workers_differ_by_worker_kind_and_incarnation():
    plan = plan_of(Topology(1, 3, 2))
    kinds = (plan.env_worker_stream, plan.model_worker_stream)
    drawn = {
        int(stream(worker, replaced).generate_state(1, np.uint64)[0])
        for stream, worker, replaced in itertools.product(kinds, range(3), range(3))
    }
    assert len(drawn) == 18


def test_streams_of_the_caller_stay_where_they_are():
    before = states()
    drawn = numbers(SerialSampler(plan_of(Topology(2, 2))))
    assert states() == before
    np.random.seed(1)
    assert np.array_equal(numbers(SerialSampler(plan_of(Topology(2, 2)))), drawn)


class Still(torch.nn.Module):
    """Always takes the first action."""

    def mode(self, observation):
        return PolicyStep({"": torch.zeros(len(observation[""]), dtype=torch.int64)}, {})


def test_evaluations_are_reproducible_and_leave_the_streams_of_the_caller():
    before, build = states(), EnvFactory(DrawingEnv).batched
    first, again, other = (
        evaluate(Still(), SPEC, build, EvaluationProtocol(3, seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.returns != other.returns
    assert states() == before
