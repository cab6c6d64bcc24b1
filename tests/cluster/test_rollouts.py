"""Rollouts of several nodes, beside each other."""

import dataclasses
import time

import pytest

pytest.importorskip("ray")

import torch

from fastrl.config import ClusterConfig, Config, EnvConfig, SamplerConfig
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import pack, unpack
from fastrl.sampling import initial_weights, make_plan, make_sampler
from fastrl.spaces import flatten
from tests.cluster.ledger import Ledger
from tests.cluster.raylets import actor, freeze, thaw

pytestmark = pytest.mark.ray

COUNTING = EnvConfig(
    id="tests.counting_env:make", kwargs={"uneven": True, "ending": "alternate", "length": 5}
)


@pytest.fixture
def two(raylets, nodes):
    """A cluster of two nodes."""
    return raylets


def run(raylets, env=COUNTING, cluster=None, **sampler):
    sizes = {"envs_per_worker": 2, "num_env_workers": 2, "rollout_length": 7} | sampler
    return Config(
        seed=3,
        env=env,
        sampler=SamplerConfig(lock_step=True, **sizes),
        cluster=ClusterConfig(address=raylets.address, **(cluster or {})),
    )


def alone(config):
    return config.model_copy(update={"cluster": None})


def equal(a, b, space):
    for name, field in a.fields.items():
        leaves = [field], [b.fields[name]]
        if name in ("observation", "action"):
            leaves = [flatten(getattr(space, f"{name}_space"), x.fields[name]) for x in (a, b)]
        for one, other in zip(*leaves, strict=True):
            assert torch.equal(one, other), name
    assert torch.equal(a.restarted, b.restarted)
    for name in ("returns", "lengths", "end_step", "slot"):
        assert (getattr(a.episodes, name) == getattr(b.episodes, name)).all()
    assert a.episodes.info.keys() == b.episodes.info.keys()
    assert a.index == b.index


def test_one_node_gives_the_rollouts_of_a_process_sampler(two):
    given = run(two, cluster={"nodes": 1}, rollout_length=8, num_model_workers=1, groups=2)
    env = {**COUNTING.model_dump(), "kwargs": {"observation": "tuple", "action": "dict"}}
    tree = {**given.model_dump(), "env": env, "model": {"recurrent": "gru"}}
    config = Config.model_validate(tree)
    plan = make_plan(alone(config))
    with make_sampler(config, plan) as cluster, make_sampler(alone(config), plan) as process:
        for turn in range(4):
            equal(cluster.collect(), process.collect(), plan.env_spec)
            weights = {k: v + 0.01 * turn for k, v in initial_weights(plan).items()}
            assert cluster.publish(weights) == process.publish(weights)
        assert cluster.stats().frames == process.stats().frames


def test_no_transition_of_two_nodes_is_misplaced(two):
    ledger, seen = Ledger(), []
    with make_sampler(run(two)) as sampler:
        for index in range(12):
            rollout = sampler.collect()
            assert rollout.slots.tolist() == list(range(8))
            assert bool(rollout.restarted.all()) == (index == 0)
            ledger.check(rollout)
            seen.append(sampler.stats().frames)
        names = sampler.stats(details=True)
        assert set(names.memory) == set(names.workers)
        sampler.pause()
        ledger.check(sampler.collect())
        sampler.call_envs([EnvCall("ending", ("never",), sets=True)])
        assert not len(sampler.collect().episodes)
    assert names.workers == tuple(f"node-{n}/env-worker-{w}" for n in (0, 1) for w in (0, 1))
    assert seen == [56 * (index + 1) for index in range(12)]
    assert ledger.begun == ledger.cut == 0


def test_rollouts_of_late_nodes_are_learnt_from_later(two):
    ledger = Ledger()
    config = run(two, cluster={"wait": 0.5}, mode="async")
    plan = make_plan(alone(config))
    with make_sampler(config, plan) as sampler:
        sampler.start()
        late = actor(two.nodes[0])
        freeze(late)
        for _ in range(3):
            rollout = sampler.collect()
            ledger.check(rollout)
            assert len(rollout.slots) == 4
            sampler.publish(initial_weights(plan))
        in_time = rollout.slots
        thaw(late)
        # Asked for before the first of those versions was published.
        ends_s = time.monotonic() + 60
        while torch.equal(rollout.slots, in_time):
            assert time.monotonic() < ends_s
            rollout = sampler.collect()
            ledger.check(rollout)
        of_late = ~torch.isin(rollout.slots, in_time)
        assert (rollout.policy_version[:, of_late] == 1).all()


def test_a_run_continues_on_as_many_nodes(two):
    config = run(two, env=EnvConfig(id="CartPole-v1"))
    plan = make_plan(config)
    with make_sampler(config, plan) as sampler:
        for _ in range(3):
            sampler.collect()
        state, expected = sampler.get_state(), sampler.collect()
    assert state["rollouts"] == 3
    again = make_sampler(config, plan)
    again.set_state(unpack(pack(state)))
    with again:
        found = again.collect()
    equal(dataclasses.replace(found, index=3), expected, plan.env_spec)
    assert not found.restarted.any()
