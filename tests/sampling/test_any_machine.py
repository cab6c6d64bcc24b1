"""The same configuration samples the same on every machine, however many cores it has."""

import pytest
import torch

from fastrl.config import load_config
from fastrl.sampling.build import initial_weights, make_plan
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.shared.memory import PORTABLE

NUM_ENVS, ROLLOUTS = 12, 3
SHORT = ["env.id=CartPole-v1", "env.max_episode_steps=9", "sampler.rollout_length=16"]
SHORT += [f"sampler.num_envs={NUM_ENVS}", "sampler.lock_step=true", "seed=3"]


@pytest.fixture
def plan_on(monkeypatch):
    """Return a function that plans on a machine with a number of cores."""
    specs = []

    def plan(cores, *overrides):
        monkeypatch.setattr("fastrl.config.models.usable_cores", lambda: cores)
        plan = make_plan(load_config(None, [*SHORT, *overrides]), env_spec=(specs or [None])[0])
        specs.append(plan.env_spec)
        return plan

    return plan


def sampled(plan, kind=SerialSampler):
    """Return every field of some rollouts."""
    with kind(plan, initial_weights(plan)) as sampler:
        rollouts = [sampler.collect() for _ in range(ROLLOUTS - 1)]
        rollouts = [{k: v.clone() for k, v in each.fields.items()} for each in rollouts]
        return [*rollouts, {k: v.clone() for k, v in sampler.collect().fields.items()}]


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "overrides",
    [(), ("sampler.num_model_workers=1",), ("sampler.num_model_workers=1", "sampler.groups=2")],
    ids=["M=0", "M=1", "M=1, two groups"],
)
def test_rollouts_are_the_same_bit_for_bit_on_any_number_of_cores(plan_on, overrides):
    expected, workers = None, set()
    for cores in (1, 2, 5, 16):
        plan = plan_on(cores, *overrides)
        workers.add(plan.topology.num_env_workers)
        found = sampled(plan)
        assert_equal(found, expected := expected or found)
    assert len(workers) == 4


def test_worker_processes_sample_what_one_process_does_on_another_machine(plan_on):
    assert_equal(sampled(plan_on(3), ProcessSampler), sampled(plan_on(1)))


@pytest.mark.parametrize("overrides", [(), ("sampler.num_model_workers=1", "sampler.groups=2")])
def test_signals_of_other_systems_do_not_change_what_is_sampled(plan_on, monkeypatch, overrides):
    monkeypatch.setenv(PORTABLE, "1")
    plan = plan_on(2, *overrides)
    assert_equal(sampled(plan, ProcessSampler), sampled(plan))


def test_seeds_are_those_of_the_slots(plan_on):
    def by_slot(plan):
        topology, seeds = plan.topology, {}
        for worker, group in topology.all_groups():
            slots = topology.slots(worker, group)
            found = plan.env_seeds(worker, group)
            seeds |= dict(zip(range(slots.start, slots.stop), found, strict=True))
        return seeds

    expected = by_slot(plan_on(1))
    assert len({*expected.values()}) == NUM_ENVS
    for cores in (2, 6):
        assert by_slot(plan_on(cores, "sampler.num_model_workers=1")) == expected
        assert by_slot(plan_on(cores, "sampler.groups=2")) == expected


def test_two_workers_of_an_even_number_draw_what_two_named_workers_draw(plan_on):
    """So runs of files that gave n and N are repeated where these become one number."""
    named = load_config(
        None, [*SHORT[:3], "sampler.envs_per_worker=6", "sampler.num_env_workers=2"]
    )
    plan = make_plan(named.model_copy(update={"seed": 3}), env_spec=(two := plan_on(2)).env_spec)
    assert not plan.topology.by_slot
    assert_equal(sampled(plan), sampled(two))
