"""Methods are called and attributes set in every environment, between two rollouts."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import Config, EnvConfig, SamplerConfig
from fastrl.envs.calls import EnvCall, latest, pack_calls, unpack_calls
from fastrl.envs.gym_vector import GymVector
from fastrl.errors import EnvError, FastrlError
from fastrl.sampling import Deadlines, ProcessSampler, SerialSampler, initial_weights, make_plan
from fastrl.sampling.worker_pool import FaultPolicy
from tests.sampling.levels import Batch, vector
from tests.sampling.test_device_sampler import config, device_sampler

LENGTH = 7
SAMPLERS = {
    "serial": {"kind": "serial"},
    "processes": {},
    "model worker": {"num_model_workers": 1, "groups": 2},
    "spare environments": {"kind": "serial", "spare_envs": 2},
}


def plan_of(env_id="wrapped", kwargs=None, **changes):
    sizes = {"envs_per_worker": 2, "num_env_workers": 2, "rollout_length": LENGTH}
    return make_plan(
        Config(
            env=EnvConfig(id=f"tests.sampling.levels:{env_id}", kwargs=kwargs or {}),
            sampler=SamplerConfig(**{**sizes, "lock_step": True, **changes}),
        )
    )


def sampler_of(plan, kind="process", faults=None, **kwargs):
    if kind == "serial":
        return SerialSampler(plan, initial_weights(plan), debug=True)
    policy = None if faults is None else FaultPolicy(5, faults.append)
    return ProcessSampler(plan, initial_weights(plan), debug=True, faults=policy, **kwargs)


def level(number, **kwargs):
    return EnvCall("set_level", (number,), kwargs)


def levels(rollout, column=1):
    """Return the levels in all observations but the first, which the rollout before had."""
    return set(rollout.observation[1:, :, column].unique().tolist())


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_are_made_before_the_next_rollout_begins(name):
    kind = SAMPLERS[name]
    with sampler_of(plan_of(**kind), kind.get("kind", "process")) as sampler:
        assert levels(sampler.collect()) == {0}
        sampler.call_envs([level(3)])
        sampler.call_envs([EnvCall("size", (4,), sets=True)])
        rollout = sampler.collect()
        assert (levels(rollout), levels(rollout, 3)) == ({3}, {4})
        assert (rollout.observation[0, :, 1] == 0).all()
        assert levels(sampler.collect()) == {3}


@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_before_the_start_are_made_before_the_first_reset(name):
    kind = SAMPLERS[name]
    sampler = sampler_of(plan_of(**kind), kind.get("kind", "process"))
    sampler.call_envs([level(2), level(6)])
    with sampler:
        assert set(sampler.collect().observation[..., 1].unique().tolist()) == {6}


def test_asynchronous_sampler_makes_calls_between_the_rollout_under_way_and_the_next():
    plan = plan_of(lock_step=False)
    with sampler_of(plan, asynchronous=True) as sampler:
        for number in range(4):
            assert levels(sampler.collect()) == {max(0, number - 1)}
            sampler.call_envs([level(number + 1)])


def test_processes_call_as_the_serial_sampler_does():
    """Random numbers that a method draws are those of its worker."""
    found = []
    for kind in ("serial", "process"):
        with sampler_of(plan_of(kind=kind), kind) as sampler:
            rollouts = []
            for number in range(3):
                sampler.call_envs([level(number, noisy=True)])
                rollouts.append(sampler.collect().observation.clone())
        found.append(torch.stack(rollouts))
    assert torch.equal(*found)
    assert len(found[0][..., 2].unique()) == 12


BATCHES = {
    "vector": lambda size: GymVector(vector(size), Batch(size).spec),
    "own": Batch,
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_other_kinds_are_called(name):
    plan = dataclasses.replace(plan_of(kind="serial"), build_env=BATCHES[name])
    with sampler_of(plan, "serial") as sampler:
        sampler.collect()
        sampler.call_envs([level(4)])
        assert levels(sampler.collect()) == {4}
        sampler.call_envs([EnvCall("level", (5,), sets=True)])
        assert levels(sampler.collect()) == {5}
        with pytest.raises(EnvError, match=r"^'[\w./:]+' has no method 'fly'$"):
            sampler.call_envs([EnvCall("fly")])
        with pytest.raises(EnvError, match=r"^'[\w./:]+' has no attribute 'wings'$"):
            sampler.call_envs([EnvCall("wings", (2,), sets=True)])


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_an_environment_lacks_or_raises_is_told_and_calls_before_it_hold(name):
    kind = SAMPLERS[name]
    with sampler_of(plan_of(**kind), kind.get("kind", "process")) as sampler:
        sampler.call_envs([level(3)])
        for call, told in (
            (EnvCall("fly"), "has no method 'fly'"),
            (EnvCall("level"), "has no method 'level'"),
            (EnvCall("wings", (2,), sets=True), "has no attribute 'wings'"),
            (level(99), r"raised in set_level\(\): ValueError: there are 90 levels"),
            (EnvCall("set_level"), r"raised in set_level\(\): TypeError: .*'level'"),
        ):
            with pytest.raises(EnvError, match=rf"^env 0 of '[\w.:]+' {told}"):
                sampler.call_envs([call])
        with pytest.raises(
            TypeError, match=r"^call_envs takes a list of EnvCall, got 'text' in it$"
        ):
            sampler.call_envs(["text"])
        assert levels(sampler.collect()) == {3}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_replaced_worker_has_the_latest_calls(asynchronous):
    faults = []
    plan = plan_of(lock_step=False)
    with sampler_of(plan, faults=faults, asynchronous=asynchronous) as sampler:
        sampler.collect()
        sampler.call_envs([level(2)])
        sampler.call_envs([EnvCall("size", (4,), sets=True), level(3)])
        sampler.collect()
        sampler.collect()
        os.kill(sampler.pids()["env-worker-1"], signal.SIGKILL)
        for _ in range(4):
            rollout = sampler.collect()
            assert (levels(rollout), levels(rollout, 3)) == ({3}, {4})
    assert [fault.worker for fault in faults] == ["env-worker-1"]


def test_worker_that_is_replaced_before_calls_makes_them_once():
    faults, plan = [], plan_of(lock_step=False, rollout_length=2000)
    with sampler_of(plan, faults=faults, asynchronous=True) as sampler:
        while not sampler.stats().env_steps[1]:
            sampler.sample_for(0.01)
        os.kill(sampler.pids()["env-worker-1"], signal.SIGKILL)
        sampler.call_envs([EnvCall("rise")])
        for _ in range(3):
            rollout = sampler.collect()
        assert levels(rollout) == {1}
    assert len(faults) == 1


@pytest.mark.parametrize("method", ["die_once", "hang_once"])
def test_worker_that_fails_in_a_call_is_replaced_by_one_that_makes_it(method, tmp_path):
    faults = []
    plan = plan_of(kwargs={"marker": str(tmp_path / "marker")})
    deadlines = Deadlines(stall_timeout_s=4.0, step_timeout_s=60.0, reset_timeout_s=60.0)
    with sampler_of(plan, faults=faults, deadlines=deadlines) as sampler:
        sampler.collect()
        sampler.call_envs([EnvCall(method, (7,))])
        assert levels(sampler.collect()) == {7}
        sampler.call_envs([level(8)])
        assert levels(sampler.collect()) == {8}
    assert len(faults) == 1
    told = {"die_once": "killed by SIGKILL", "hang_once": "did not answer for its environments"}
    assert told[method] in str(faults[0])


def test_arguments_larger_than_a_pipe_arrive():
    with sampler_of(plan_of()) as sampler:
        sampler.call_envs([EnvCall("set_map", (np.zeros(300_000),))])
        assert levels(sampler.collect(), 3) == {300_000}


def test_states_hold_what_was_called_before_them():
    plan = plan_of()
    with sampler_of(plan) as sampler:
        sampler.collect()
        sampler.call_envs([level(5)])
        state = sampler.get_state()
    other = sampler_of(plan)
    other.set_state(state)
    with other:
        assert levels(other.collect()) == {5}


def test_paused_sampler_makes_calls():
    with sampler_of(plan_of()) as sampler:
        sampler.collect()
        sampler.pause()
        sampler.call_envs([level(5)])
        assert levels(sampler.collect()) == {5}


def test_tensor_environments_reject_calls_and_closed_samplers_too():
    with device_sampler(config()) as sampler:
        sampler.call_envs([])
        with pytest.raises(EnvError, match=r"'set_level' cannot be called or set: .* serial"):
            sampler.call_envs([level(1)])
    sampler = sampler_of(plan_of(kind="serial"), "serial")
    sampler.close()
    with pytest.raises(FastrlError, match="closed"):
        sampler.call_envs([level(1)])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from("abc"), VALUES, st.booleans()), max_size=6))
def test_latest_calls_are_kept_in_order_and_come_back_as_they_were(found):
    calls = [EnvCall(name, (value,), {}, sets) for name, value, sets in found]
    kept = latest(calls)
    places = [max(i for i, each in enumerate(calls) if each[::3] == call[::3]) for call in kept]
    assert places == sorted(places)
    assert [calls[place] for place in places] == kept
    assert {call[::3] for call in kept} == {call[::3] for call in calls}
    assert unpack_calls(pack_calls(calls)) == calls
