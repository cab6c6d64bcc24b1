"""Every transition lands in its place with every topology."""

import gc
import itertools
import os
import time
from functools import partial

import psutil
import pytest
import torch

from fastrl.errors import EnvError, FastrlError
from fastrl.sampling import process_sampler as table_sampler
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Sampler
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.sampling.uneven_sampler import UnevenSampler
from fastrl.shared.table import Stage
from fastrl.spec import Topology
from tests.sampling.counting import CountingEnvs, Ledger, make_plan, weights

# n, N, M, groups: every combination of groups, N and M that a Topology accepts.
TOPOLOGIES = [
    Topology(4, num_env_workers, num_model_workers, groups)
    for num_env_workers, num_model_workers, groups in itertools.product((1, 2, 3), range(3), (1, 2))
    if num_model_workers <= num_env_workers
]
# Those in which every value of N, M and groups meets the values of the others.
FEW = [Topology(4, *each) for each in ((1, 0, 2), (1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 0, 1))]
FEW.append(Topology(4, 3, 2, 2))
MIXED = [(topology, number % 2 == 1) for number, topology in enumerate(FEW)]
"""Each synchronous or asynchronous."""
ROLLOUTS = 5


def collect_and_check(sampler, plan, nested=False):
    ledger = Ledger(plan)
    for _ in range(ROLLOUTS):
        ledger.check(sampler.collect(), nested)


@pytest.mark.parametrize(("topology", "asynchronous"), MIXED, ids=str)
def test_every_transition_lands_in_its_slot(topology, asynchronous):
    plan = make_plan(topology, rollout_length=7)
    with ProcessSampler(plan, asynchronous=asynchronous, debug=True) as sampler:
        collect_and_check(sampler, plan)


def test_serial_sampler_puts_every_transition_in_its_slot():
    for topology in TOPOLOGIES:
        plan = make_plan(topology, rollout_length=7)
        with SerialSampler(plan, debug=True) as sampler:
            collect_and_check(sampler, plan)


@pytest.mark.parametrize("num_model_workers", [0, 1])
@pytest.mark.parametrize("rollout_length", [1, 2])
def test_ends_at_the_edges_of_rollouts(rollout_length, num_model_workers):
    plan = make_plan(Topology(6, 2, num_model_workers, 2), rollout_length)
    with ProcessSampler(plan, asynchronous=True, debug=True) as sampler:
        collect_and_check(sampler, plan)


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_every_leaf_of_nested_observations_lands_in_its_slot(num_model_workers):
    plan = make_plan(Topology(4, 2, num_model_workers, 2), 9, nested=True)
    with ProcessSampler(plan, debug=True) as sampler:
        collect_and_check(sampler, plan, nested=True)


def numbers(rollout):
    return [
        tensor.clone()
        for name, tensor in rollout.fields.items()
        if isinstance(tensor, torch.Tensor) and name != "policy_version"
    ]


@pytest.mark.parametrize("topology", FEW, ids=str)
def test_lock_step_processes_equal_the_serial_sampler_bit_for_bit(topology):
    plan = make_plan(topology, rollout_length=7, lock_step=True)
    with SerialSampler(plan) as serial, ProcessSampler(plan) as parallel:
        for _ in range(ROLLOUTS):
            one, other = numbers(serial.collect()), numbers(parallel.collect())
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_action_noise_differs_between_slots_steps_and_rollouts():
    plan = make_plan(Topology(4, 2, 1, 2), 50)
    with SerialSampler(plan) as sampler:
        first, second = (sampler.collect().action.clone() for _ in range(2))
    columns = [tuple(c.tolist()) for actions in (first, second) for c in actions.T]
    assert len(set(columns)) == 2 * plan.topology.num_envs


def test_same_seed_same_numbers_and_another_seed_others():
    def actions(seed):
        plan = make_plan(Topology(4, 2), 30, seed=seed)
        with ProcessSampler(plan) as sampler:
            rollout = sampler.collect()
            return rollout.action.clone(), rollout.observation[0, :, 0].clone()

    first, again, other = actions(0), actions(0), actions(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_env_seeds_are_distinct_and_independent_of_the_topology():
    def seeds(topology):
        plan = make_plan(topology, 1)
        return [s for group in topology.all_groups() for s in plan.env_seeds(*group)]

    expected = seeds(Topology(24, 1))
    assert len(set(expected)) == 24
    for topology in (Topology(4, 6, 2, 1), Topology(8, 3, 1, 2), Topology(12, 2, 0, 4)):
        assert seeds(topology) == expected


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_synchronous_rollouts_use_the_newest_weights_throughout(num_model_workers):
    plan = make_plan(Topology(4, 2, num_model_workers, 2), 5)
    with ProcessSampler(plan, weights(1), debug=True) as sampler:
        for version in range(1, 5):
            rollout = sampler.collect()
            assert (rollout.policy_version == version).all()
            assert (rollout.log_prob == version).all()
            assert sampler.publish(weights(version + 1)) == version + 1


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_asynchronous_lag_is_bounded_and_told_truly(num_model_workers):
    plan = make_plan(Topology(4, 2, num_model_workers, 2), 5)
    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:
        for newest in range(1, 12):
            rollout = sampler.collect()
            assert torch.equal(rollout.log_prob, rollout.policy_version.float())
            assert (rollout.policy_version >= newest - 2).all()
            assert (rollout.policy_version <= newest).all()
            sampler.publish(weights(newest + 1))


def test_asynchronous_sampling_goes_on_while_the_learner_works():
    plan = make_plan(Topology(4, 2), 20)
    with ProcessSampler(plan, asynchronous=True) as sampler:
        rollout = sampler.collect()
        held = rollout.reward.clone()
        deadline = time.monotonic() + 60
        while sampler.stats().frames < 2 * rollout.num_steps:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        assert sampler.stats().frames == 2 * rollout.num_steps
        assert torch.equal(rollout.reward, held)


@pytest.mark.parametrize("topology", [Topology(6, 2, 0, 2), Topology(6, 2, 1, 2)], ids=str)
def test_stats_agree_with_the_transitions_written(topology):
    plan = make_plan(topology, 11)
    with ProcessSampler(plan) as sampler:
        episodes = sum(len(sampler.collect().episodes) for _ in range(ROLLOUTS))
        found = sampler.stats()
    assert found.frames == ROLLOUTS * 11 * 12
    assert found.episodes.sum() == episodes
    if topology.num_model_workers:
        assert found.inferred_frames.sum() == ROLLOUTS * (11 + 1) * 12


def test_rollouts_are_views_of_two_banks():
    plan = make_plan(Topology(4, 2), 5)
    with ProcessSampler(plan) as sampler:
        places = [sampler.collect().reward.data_ptr() for _ in range(4)]
    assert places[0] == places[2] != places[1] == places[3]


def test_each_sampler_fulfils_the_protocol():
    plan = make_plan(Topology(4, 2), 5)
    for kind in (SerialSampler, ProcessSampler):
        with kind(plan) as sampler:
            assert isinstance(sampler, Sampler)


def test_one_writer_per_field():
    """While one kind of worker works, the fields of the other do not move."""
    plan = make_plan(Topology(4, 1, 0, 2), 40)
    with SerialSampler(plan, weights(1)) as sampler:
        sampler.collect()
        bank = sampler._context.table.banks[1]
        stages = {field.name: field.stage for field in plan.schema}
        moved = set()
        env_worker, policy = {Stage.OBSERVED, Stage.STEPPED}, {Stage.ACTED, Stage.VALUED}
        for owner, name in ((env_worker, "_step"), (policy, "_infer")):
            original = getattr(sampler, name)

            def spy(*args, original=original, owner=owner):
                before = {k: snapshot(v) for k, v in bank.fields.items()}
                original(*args)
                for k, v in bank.fields.items():
                    if not torch.equal(before[k], snapshot(v)):
                        moved.add(k)
                        assert stages[k] in owner, (owner, k)

            setattr(sampler, name, spy)
        sampler.collect()
    assert moved == bank.fields.keys()


def snapshot(value):
    tensors = value.values() if isinstance(value, dict) else [value]
    return torch.cat([t.flatten().double() for t in tensors])


@pytest.mark.parametrize("kind", [SerialSampler, ProcessSampler, partial(UnevenSampler, wait=1)])
@pytest.mark.parametrize("started", [True, False])
def test_closed_sampler_says_so(kind, started):
    sampler = kind(make_plan(Topology(4, 1), 5))
    if started:
        sampler.collect()
    sampler.close()
    sampler.close()
    uses = [sampler.collect, sampler.start, sampler.pause, sampler.get_state]
    uses += [partial(sampler.publish, weights(1)), partial(sampler.call_envs, [])]
    uses += [partial(sampler.set_state, {})]
    for use in uses:
        with pytest.raises(FastrlError, match="this sampler is closed"):
            use()


class Closed(CountingEnvs):
    """Counts how many are open; fails as its class says."""

    open = 0
    fails_at = None

    def __init__(self, num_envs):
        super().__init__(num_envs)
        type(self).open += 1
        self._steps = 0

    def step(self, views):
        self._steps += 1
        if self._steps == self.fails_at:
            raise EnvError("broken on purpose")
        super().step(views)

    def close(self):
        type(self).open -= 1


def test_serial_sampler_that_cannot_start_closes_what_it_has_built():
    class Envs(Closed):
        """The second one cannot be built."""

    def build(num_envs):
        if Envs.open:
            raise EnvError("no licence for two")
        return Envs(num_envs)

    sampler = SerialSampler(make_plan(Topology(4, 2), 5, build_env=build))
    with pytest.raises(EnvError, match="no licence for two"), sampler:
        pass
    assert Envs.open == 0
    with pytest.raises(FastrlError, match="this sampler is closed"):
        sampler.collect()


def test_serial_sampler_does_not_go_on_after_a_failure():
    """Its environments are no longer where the rollout says."""

    class Envs(Closed):
        fails_at = 8

    sampler = SerialSampler(make_plan(Topology(4, 1), 5, build_env=Envs))
    sampler.collect()
    with pytest.raises(EnvError, match="broken on purpose"):
        sampler.collect()
    assert Envs.open == 0
    with pytest.raises(FastrlError, match="this sampler is closed"):
        sampler.collect()


@pytest.mark.parametrize("kind", [SerialSampler, ProcessSampler])
@pytest.mark.parametrize("part", ["Table", "WeightStore", "Handoff"])
def test_sampler_that_cannot_be_made_gives_its_memory_back(kind, part, monkeypatch):
    def refuse(*_):
        raise FastrlError("not enough memory")

    monkeypatch.setattr(table_sampler, part, refuse)
    process = psutil.Process()
    gc.collect()  # or what other tests have dropped is closed meanwhile
    before = process.num_fds()
    with pytest.raises(FastrlError, match="not enough memory"):
        kind(make_plan(Topology(4, 1), 5))
    assert process.num_fds() == before


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kind", [ProcessSampler, partial(UnevenSampler, wait=1.0)])
def test_fork_that_closes_its_copy_ends_no_worker(kind):
    with kind(make_plan(Topology(4, 1), 5)) as sampler:
        sampler.collect()
        child = os.fork()
        if not child:
            try:
                sampler.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        sampler.collect()
