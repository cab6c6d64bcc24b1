"""A sampler goes on from the state of another one, in the middle of episodes."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch

from fastrl.config import Config, EnvConfig, SamplerConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.state import StateError, pack, unpack
from fastrl.errors import FastrlError
from fastrl.sampling import ProcessSampler, SerialSampler, initial_weights, make_plan
from fastrl.sampling.worker_pool import FaultPolicy
from tests.sampling.remembering import Steps
from tests.sampling.test_device_sampler import RANDOMIZED, config, device_sampler, numbers
from tests.training.saveable import Saveable

LENGTH = 7


def plan_of(**changes):
    sizes = {"envs_per_worker": 4, "num_env_workers": 2, "rollout_length": LENGTH}
    settings = Config(
        env=EnvConfig(id="tests.training.saveable:Saveable"),
        sampler=SamplerConfig(**{**sizes, "lock_step": True, **changes}),
    )
    return make_plan(settings)


def later(plan, rollouts):
    return dataclasses.replace(plan, first_rollout=plan.first_rollout + rollouts)


def copied(rollout):
    ends = rollout.episodes
    found = [torch.from_numpy(each) for each in (ends.returns, ends.lengths, ends.slot)]
    by_name = {
        name: value
        for name, value in rollout.fields.items()
        if isinstance(value, torch.Tensor) and name not in ("policy_version", "restarted")
    }
    return [*found, *(tensor.clone() for tensor in by_name.values())]


def assert_goes_on(build, plan, others=None):
    """Compare rollouts 3 to 5 of one sampler with the first three of one that goes on from it."""
    with build(plan) as one:
        assert one.get_state() is None
        for _ in range(3):
            one.collect()
        content = pack(one.get_state())
        expected = [copied(one.collect()) for _ in range(3)]
    state = unpack(content)
    assert state["rollouts"] == 3
    other = (others or build)(later(plan, 3))
    other.set_state(state)
    with other:
        for same in expected:
            rollout = other.collect()
            assert not rollout.restarted.any()
            for found, wanted in zip(copied(rollout), same, strict=True):
                assert torch.equal(found, wanted)


def processes(plan):
    return ProcessSampler(plan, initial_weights(plan), debug=True)


def serial(plan):
    return SerialSampler(plan, initial_weights(plan), debug=True)


@pytest.mark.parametrize(
    "sizes",
    [
        {"groups": 2},
        {"num_model_workers": 1, "spare_envs": 2},
        {"num_model_workers": 1, "groups": 2},
        pytest.param({"num_model_workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_processes_go_on(sizes):
    assert_goes_on(processes, plan_of(**sizes), serial)


@pytest.mark.parametrize(
    "named", [{"envs_per_worker": 4}, {"envs_per_worker": None, "num_envs": 8}]
)
def test_environments_go_on_with_another_number_of_model_workers(named):
    sizes = {**named, "groups": 2, "kind": "serial"}
    with serial(plan_of(**sizes, num_model_workers=1)) as one:
        one.collect()
        state = one.get_state()
    other = serial(later(plan_of(**sizes), 1))
    other.set_state(state)
    with other:
        rollout = other.collect()
    ended = rollout.terminated[0]
    assert not ended.all()
    # The last number is the length of the episode.
    steps = (30 * (rollout.observation[1, :, 2] - rollout.observation[0, :, 2])).round()
    assert (steps[~ended] == 1).all()


def test_one_device_goes_on():
    settings = config(**RANDOMIZED)
    kept = []
    with device_sampler(settings) as one:
        for _ in range(3):
            one.collect()
        state = unpack(pack(one.get_state()))
        kept = [one.collect() for _ in range(2)]
    other = device_sampler(settings, first_rollout=3)
    other.set_state(state)
    with other:
        for same in kept:
            rollout = other.collect()
            assert not rollout.restarted.any()
            for found, wanted in zip(numbers(rollout), numbers(same), strict=True):
                if found.dtype != torch.bool and found.dtype != torch.int64:
                    assert torch.equal(found, wanted)
            assert rollout.episodes.returns.tolist() == same.episodes.returns.tolist()


def test_states_of_other_samplers_are_rejected():
    one, other = serial(plan_of(kind="serial")), device_sampler(config())
    with one, other:
        one.collect()
        other.collect()
        fewer = SerialSampler(plan_of(kind="serial", envs_per_worker=2))
        with fewer, pytest.raises(StateError, match="envs_per_worker = 4 and groups = 1; this run"):
            fewer.set_state(one.get_state())
        with pytest.raises(StateError, match="another kind of sampler"):
            one.set_state(other.get_state())
        with pytest.raises(StateError, match="another kind of sampler"):
            other.set_state(one.get_state())
        more = device_sampler(
            config().model_copy(update={"sampler": SamplerConfig(kind="device", envs_per_worker=3)})
        )
        with more, pytest.raises(StateError, match="the state is not one of 3"):
            more.set_state(other.get_state())
    with pytest.raises(FastrlError, match="is closed"):
        one.get_state()


def test_worker_that_dies_has_no_state_until_its_successor_has_begun():
    faults = []
    policy = FaultPolicy(max_restarts=10, on_fault=faults.append)
    with ProcessSampler(plan_of(), faults=policy) as sampler:
        sampler.collect()
        os.kill(sampler.pids()["env-worker-1"], signal.SIGKILL)
        with pytest.raises(StateError, match="env-worker-1 has ended"):
            sampler.get_state()
        rollout = sampler.collect()
        assert rollout.restarted is not None
        assert rollout.restarted.sum() == 4
        assert len(faults) == 1
        state = sampler.get_state()
        assert state["seeded"] == [(0, 0), (0, 1)]


class Huge(Saveable):
    """Its state is more than a pipe holds."""

    def get_state(self):
        return {**super().get_state(), "ballast": bytes(100_000)}


def test_states_may_be_larger_than_a_pipe_and_slow_nothing_when_paused():
    plan = dataclasses.replace(plan_of(), build_env=EnvFactory(Huge).batched)
    with ProcessSampler(plan) as sampler:
        sampler.collect()
        sampler.pause()
        for _ in range(2):
            assert len(pack(sampler.get_state())) > 800_000
        assert sampler.collect().index == 1


@pytest.mark.parametrize("sizes", [{"groups": 2}, {"num_model_workers": 1, "groups": 2}])
def test_states_of_policies_go_on(sizes):
    plan = plan_of(**sizes)
    plan = dataclasses.replace(
        plan, build_model=lambda: Steps(plan.env_spec), outputs=None, sequence_length=1
    )
    assert_goes_on(processes, plan, serial)
    with serial(plan) as one:
        one.collect()
        state = one.get_state()
    state["policy_state"][""] = state["policy_state"][""][:, :1]
    with serial(plan) as other, pytest.raises(StateError, match=r"must be float32 \(8, 2\), got"):
        other.set_state(state)


def test_states_of_policies_go_on_on_one_device():
    spec = make_plan(config()).env_spec
    changes = {"build_model": lambda: Steps(spec), "outputs": None}
    with device_sampler(config(), **changes) as one:
        one.collect()
        state = unpack(pack(one.get_state()))
        expected = one.collect()
    other = device_sampler(config(), first_rollout=1, **changes)
    other.set_state(state)
    with other:
        found = other.collect()
    assert (expected.policy_state[0, :, 0] > Steps.BEGIN).any()
    for name in ("given", "policy_state", "value", "final_value", "action"):
        assert torch.equal(found.fields[name], expected.fields[name])
