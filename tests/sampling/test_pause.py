"""A paused sampler uses no core, and continues unchanged."""

import dataclasses
import itertools
import os
import signal
import time
from functools import partial

import psutil
import pytest

from fastrl.errors import ConfigError, FastrlError, WorkerError
from fastrl.sampling import Deadlines, ProcessSampler, SerialSampler
from fastrl.sampling.worker_pool import FaultPolicy
from fastrl.spec import Topology
from fastrl.workers.handoff import Counter
from tests.sampling.counting import CountingEnvs, Ledger, make_plan, weights
from tests.tuning.busy import busy, used_s

WATCHED_S = 0.15
TOPOLOGIES = (Topology(4, 2, 0, 1), Topology(4, 2, 1, 2), Topology(4, 2, 2, 1))
USUAL = [(TOPOLOGIES[0], False, True), (TOPOLOGIES[1], False, True), (TOPOLOGIES[1], True, False)]


class BusyEnvs(CountingEnvs):
    """Each environment computes for so long in every step."""

    def __init__(self, num_envs, step_s):
        super().__init__(num_envs)
        self._step_s = step_s

    def step(self, views):
        busy(self._step_s * self.num_envs)
        super().step(views)


def busy_plan(topology, length, step_s, **others):
    plan = make_plan(topology, length)
    return dataclasses.replace(plan, build_env=partial(BusyEnvs, step_s=step_s), **others)


def assert_at_rest(sampler):
    pids = sampler.pids().values()
    counters, before_s = sampler.counters.snapshot(), used_s(pids)
    time.sleep(WATCHED_S)
    # A worker looks around four times a second; what is left is the kernel's rounding.
    assert used_s(pids) - before_s < WATCHED_S / 4
    assert (sampler.counters.snapshot() == counters).all()


def until_stepping(sampler):
    """Let it go on until the next step is complete, so that another one is under way."""
    before, deadline = sampler.stats().frames, time.monotonic() + 120
    while sampler.stats().frames == before:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.mark.parametrize(("envs", "step_s"), [(1, 0.001), (64, 0.006)])
def test_nothing_moves_however_long_a_step_takes(envs, step_s):
    # The longer one takes 0.4 s, in which no counter moves.
    topology = Topology(envs, 1, 0, 1)
    with ProcessSampler(busy_plan(topology, 8, step_s), weights(1), asynchronous=True) as sampler:
        until_stepping(sampler)
        sampler.pause()
        assert_at_rest(sampler)


@pytest.mark.parametrize(
    ("topology", "lock_step", "asynchronous"),
    [
        pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow)
        for case in itertools.product(TOPOLOGIES, (False, True), (False, True))
    ],
)
def test_what_is_sampled_between_pauses_is_what_is_sampled_without(
    topology, lock_step, asynchronous
):
    plan = busy_plan(topology, 5, 0.0002, lock_step=lock_step)
    ledger = Ledger(plan)
    with ProcessSampler(plan, weights(1), asynchronous=asynchronous, debug=True) as sampler:
        for round_ in range(6):
            ledger.check(sampler.collect())
            if asynchronous:
                time.sleep(0.0007 * round_)  # to pause at another place of a rollout
            sampler.pause()
            sampler.pause()
            if round_ == 3:
                assert_at_rest(sampler)


def test_time_of_a_pause_is_charged_to_nothing():
    plan = busy_plan(Topology(2, 1, 1, 1), 4, 0.0005)
    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:
        sampler.collect()
        before = sampler.stats()
        began_s = time.monotonic()
        sampler.pause()
        time.sleep(0.6)
        for _ in range(3):
            sampler.collect()
        spent_ns = (sampler.stats() - before).waiting_ns.max()
        whole_s = time.monotonic() - began_s
    assert spent_ns / 1e9 < whole_s - 0.3


def test_workers_are_at_rest_before_their_first_step_and_after_their_last():
    plan = busy_plan(Topology(2, 2, 1, 1), 4, 0.0005)
    with ProcessSampler(plan, weights(1)) as sampler:
        sampler.pause()
        assert_at_rest(sampler)
        assert sampler.stats().frames == 0
        sampler.collect()
        sampler.pause()
        assert_at_rest(sampler)


def test_a_worker_that_died_is_replaced_before_its_sampler_is_at_rest():
    plan = busy_plan(Topology(2, 2, 1, 1), 4, 0.0005)
    faults = []
    policy = FaultPolicy(max_restarts=5, on_fault=faults.append)
    with ProcessSampler(plan, weights(1), asynchronous=True, faults=policy) as sampler:
        ledger = Ledger(plan)
        ledger.check(sampler.collect())
        sampler.pause()
        for name in ("env-worker-1", "model-worker-0"):
            os.kill(sampler.pids()[name], signal.SIGKILL)
            psutil.Process(sampler.pids()[name]).wait(10)
            sampler.pause()
            assert_at_rest(sampler)
        assert {fault.worker for fault in faults} == {"env-worker-1", "model-worker-0"}
        for _ in range(4):
            ledger.check(sampler.collect(), faults=True)


def test_a_worker_that_dies_while_it_is_waited_for_is_reported():
    plan = busy_plan(Topology(1, 2, 0, 1), 4, 0.3)
    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:
        until_stepping(sampler)
        os.kill(sampler.pids()["env-worker-0"], signal.SIGKILL)
        with pytest.raises(WorkerError, match="env-worker-0 was killed by SIGKILL"):
            sampler.pause()


def test_a_worker_that_does_not_come_to_rest_is_reported():
    plan = busy_plan(Topology(1, 1, 0, 1), 4, 5.0)
    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:
        while not sampler.counters.row("env-worker-0")[Counter.INFERENCE_NS]:
            time.sleep(0.001)
        with pytest.raises(WorkerError, match=r"env-worker-0 was still busy after 0\.1 s"):
            sampler.pause(0.1)
        with pytest.raises(FastrlError, match="closed"):
            sampler.collect()


def test_a_pause_does_not_count_as_idling():
    plan = busy_plan(Topology(2, 1, 1, 1), 4, 0.0005)
    deadlines = Deadlines(stall_timeout_s=1.0)
    with ProcessSampler(plan, weights(1), asynchronous=True, deadlines=deadlines) as sampler:
        sampler.collect()
        for _ in range(4):
            sampler.pause()
            time.sleep(0.3)
        for _ in range(4):
            sampler.collect()


def test_samplers_that_have_nothing_to_pause_say_so_at_once():
    plan = make_plan(Topology(2, 1, 0, 1), 4)
    with SerialSampler(plan, weights(1)) as serial:
        serial.collect()
        serial.pause()
        serial.collect()
    with pytest.raises(FastrlError, match="closed"):
        serial.pause()
    sampler = ProcessSampler(plan, weights(1))
    with sampler, pytest.raises(ConfigError, match="timeout_s"):
        sampler.pause(0)
    with pytest.raises(FastrlError, match="closed"):
        sampler.pause()
