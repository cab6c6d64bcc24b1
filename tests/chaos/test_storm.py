"""Faults at random moments: the short form of ``python -m tests.chaos.storm``."""

import os
import random
import time

import pytest

from fastrl.sampling import Deadlines, FaultPolicy, ProcessSampler
from fastrl.spec import Topology
from tests.chaos.storm.weather import Storm
from tests.sampling.counting import CountingEnvs, Ledger, hang, make_plan, raise_error

DEADLINE_S = 1.5


class Stormy(CountingEnvs):
    """Raises or hangs once in about 3000 steps, and makes a step take a tenth of a millisecond."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self._pick = random.Random(os.getpid())

    def step(self, views):
        time.sleep(0.0001)
        super().step(views)
        if self._pick.random() < 1 / 3000:
            self._pick.choice([raise_error, hang])()


def sample_in_a_storm(topology, faults, seed, asynchronous=True, max_s=100.0):
    """Sample until so many faults have happened; return what happened."""
    found = []
    plan = make_plan(topology, 11, build_env=Stormy)
    sampler = ProcessSampler(
        plan,
        asynchronous=asynchronous,
        deadlines=Deadlines(60.0, DEADLINE_S, DEADLINE_S, DEADLINE_S),
        faults=FaultPolicy(10**6, found.append),
        debug=True,
    )
    until = time.monotonic() + max_s
    with sampler:
        ledger = Ledger(plan)
        ledger.check(sampler.collect(), faults=True)
        with Storm(sampler, seed, deadline_s=DEADLINE_S) as storm:
            while len(found) < faults and time.monotonic() < until:
                ledger.check(sampler.collect(), faults=True)
    assert not storm.unrecovered
    return found, ledger


@pytest.mark.parametrize(
    ("topology", "asynchronous"),
    [
        pytest.param(Topology(4, 2, 0, 1), True, marks=pytest.mark.slow),
        (Topology(4, 2, 1, 2), False),
    ],
)
def test_not_one_transition_is_misplaced_in_a_storm(topology, asynchronous):
    found, ledger = sample_in_a_storm(topology, faults=6, seed=1, asynchronous=asynchronous)
    assert len(found) >= 6
    env_faults = [fault for fault in found if fault.worker.startswith("env")]
    assert ledger.cuts + ledger.lost <= 4 * len(env_faults)
    assert all(fault.cause for fault in found)
