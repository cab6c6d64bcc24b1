"""What samplers say of themselves is plain data, adds up, and is enough to measure one."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastrl import Protocol, SerialSampler
from fastrl.sampling import ProcessSampler, SamplerStats
from fastrl.spec import Topology
from fastrl.throughput import measure
from fastrl.workers.handoff import Counter
from tests.sampling.counting import make_plan, weights

NAMES = ("env-worker-0", "env-worker-1", "model-worker-0")
COUNTERS = arrays(np.int64, (len(NAMES), len(Counter)), elements=st.integers(0, 2**40))


class Elsewhere:
    """A sampler of which only plain data comes back, as from another machine."""

    def __init__(self, sampler):
        self._sampler = sampler
        self.env_spec, self.topology = sampler.env_spec, sampler.topology
        self.rollout_length = sampler.rollout_length

    def stats(self, *, details=False):
        return pickle.loads(pickle.dumps(self._sampler.stats(details=details)))

    def __getattr__(self, name):
        if name == "counters":
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sampler.close()


def test_a_sampler_of_which_only_plain_data_is_seen_is_measured():
    with Elsewhere(SerialSampler(make_plan(Topology(4, 2), 8), weights(1))) as sampler:
        found = measure(sampler, Protocol(0.05, 2, 0.0))
    assert found.frames > 0
    assert found.frames % (8 * 8) == 0
    assert found.shares.keys() == found.memory.keys() == {"env-worker-0", "env-worker-1"}


@pytest.mark.parametrize("models", [0, 1])
def test_details_name_every_process_and_both_ends_of_a_handoff(models):
    with ProcessSampler(make_plan(Topology(4, 2, models), 8), weights(1)) as sampler:
        assert sampler.stats().frames == 0
        known = {"env-worker", "model-worker"} if models else set()
        rollouts, found = 0, sampler.stats()
        # A worker that never had to wait has no latency.
        while rollouts == 0 or (set(found.handoff_us) != known and rollouts < 100):
            sampler.collect()
            rollouts += 1
            brief, found = sampler.stats(), sampler.stats(details=True)
        assert set(found.handoff_us) == known
        assert found.memory.keys() == sampler.pids().keys() == set(found.workers)
    assert not brief.memory
    assert not brief.handoff_us
    assert all(each.rss_mib >= each.unique_mib > 0 for each in found.memory.values())
    # What was done stays known.
    assert sampler.stats().frames == 8 * 8 * rollouts


@given(first=COUNTERS, second=COUNTERS, third=COUNTERS)
def test_windows_add_up_and_so_do_workers(first, second, third):
    a, b, c = (
        SamplerStats.of_counters(time_ns, NAMES, counters)
        for time_ns, counters in enumerate((first, first + second, first + second + third))
    )
    whole, parts = c - a, (c - b) + (b - a)
    assert parts.time_ns == whole.time_ns == 2
    for one, other in zip(whole.time_shares.values(), parts.time_shares.values(), strict=True):
        assert one == other
        assert sum(one.values()) == pytest.approx(1) or not any(one.values())
    assert parts.frames == whole.frames == (second + third)[:, Counter.ENV_STEPS].sum()
    kinds = whole.by_kind()
    assert kinds.workers == ("env-worker", "model-worker")
    assert kinds.frames == whole.frames
    assert kinds.episodes.tolist() == [whole.episodes[:2].sum(), whole.episodes[2]]


def test_workers_that_joined_meanwhile_count_from_zero():
    counters = np.full((3, len(Counter)), 7)
    before = SamplerStats.of_counters(5, NAMES[:2], counters[:2])
    spent = SamplerStats.of_counters(9, NAMES, 2 * counters) - before
    assert spent.workers == NAMES
    assert spent.env_steps.tolist() == [7, 7, 14]
