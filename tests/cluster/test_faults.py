"""Nodes that die, freeze, and come back; and drivers that die."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("ray")

from fastrl.config import ClusterConfig, Config, EnvConfig, SamplerConfig
from fastrl.errors import ConfigError, WorkerError
from fastrl.sampling import make_plan, make_sampler
from tests.cluster.ledger import Ledger
from tests.cluster.raylets import actor, freeze, raylet, thaw, wait_until

pytestmark = pytest.mark.ray

COUNTING = EnvConfig(
    id="tests.counting_env:make", kwargs={"uneven": True, "ending": "alternate", "length": 5}
)


def run(raylets, **sampler):
    sizes = {"envs_per_worker": 2, "num_env_workers": 2, "rollout_length": 7} | sampler
    return Config(
        env=COUNTING,
        sampler=SamplerConfig(**sizes),
        cluster=ClusterConfig(address=raylets.address, node_timeout_s=4.0),
    )


class Watched:
    """A sampler on some nodes, whose rollouts are followed."""

    def __init__(self, sampler, faults):
        self.sampler, self.faults, self.ledger = sampler, faults, Ledger()

    def until(self, holds):
        """Collect until something holds of a rollout; return it."""
        until_s = time.monotonic() + 60
        while True:
            rollout = self.sampler.collect()
            self.ledger.check(rollout)
            if holds(rollout):
                return rollout
            assert time.monotonic() < until_s, self.faults

    def all(self, slots):
        """Collect until every one of so many slots is there."""
        return self.until(lambda rollout: len(rollout.slots) == slots)


@pytest.fixture(scope="module")
def watched(raylets, nodes):
    """Two nodes; each test leaves two."""
    faults = []
    plan = make_plan(run(raylets))
    with make_sampler(run(raylets), plan, on_fault=faults.append) as sampler:
        made = Watched(sampler, faults)
        made.all(8)
        made.nodes, made.raylets, made.plan = nodes, raylets, plan
        yield made


@pytest.fixture(autouse=True)
def _faults_of_one_test(request):
    if "watched" in request.fixturenames:
        made = request.getfixturevalue("watched")
        made.faults.clear()
        made.ledger.begun = made.ledger.cut = 0


def test_a_killed_actor_costs_its_rollout_and_takes_its_workers_along(watched):
    process = actor(watched.nodes[0])
    family = process.children(recursive=True)
    process.kill()
    wait_until(lambda: not any(alive(each) for each in family))
    watched.until(lambda rollout: len(rollout.slots) == 8 and watched.faults)
    assert watched.ledger.begun == 4
    assert [fault.worker for fault in watched.faults] in (["node-0"], ["node-1"])
    assert "its rollout in flight is lost" in str(watched.faults[0])


def test_a_worker_killed_on_a_node_is_replaced_there(watched):
    # The fork server is the child; the workers are its children.
    workers = [w for server in actor(watched.nodes[0]).children() for w in server.children()]
    max(workers, key=lambda process: process.pid).kill()
    watched.until(lambda _: watched.faults)
    assert watched.faults[0].worker in ("node-0/env-worker-1", "node-1/env-worker-1")
    assert watched.faults[0].suspects[0].env in range(8)
    watched.all(8)
    assert watched.ledger.begun + watched.ledger.cut == 2


def test_a_short_freeze_costs_nothing(watched):
    process = raylet(watched.nodes[0])
    freeze(process)
    try:
        end_s = time.monotonic() + 2.0
        watched.until(lambda _: time.monotonic() > end_s)
    finally:
        thaw(process)
    watched.all(8)
    assert not watched.faults


def test_a_frozen_actor_is_lost_after_the_deadline_and_its_node_used_again(watched):
    freeze(actor(watched.nodes[0]))
    watched.until(lambda _: watched.faults)
    assert "did not answer within 5 s" in watched.faults[0].cause
    watched.all(8)
    assert watched.ledger.begun == 4


def test_a_node_that_joins_takes_the_place_of_one_that_was_killed(watched):
    watched.raylets.add()
    watched.all(12)
    gone = watched.nodes[0]
    process = actor(gone)
    family = [process, *process.children(recursive=True)]
    watched.raylets.remove(gone)
    wait_until(lambda: not any(alive(each) for each in family))
    watched.until(lambda _: watched.faults)
    watched.all(8)


def test_an_object_store_that_is_too_small_is_one_line(watched):
    config = run(watched.raylets, rollout_length=1_000_000)
    plan = dataclasses.replace(watched.plan, rollout_length=1_000_000)
    with (
        pytest.raises(
            ConfigError, match=r"object store of .* has 100 MiB, .*--object-store-memory"
        ),
        make_sampler(config, plan),
    ):
        pass


def test_a_full_node_is_waited_for_no_longer_than_the_deadline(watched):
    config = run(watched.raylets, start_timeout_s=2.0)
    with (
        pytest.raises(WorkerError, match=r"no node of the cluster samples: .*cores taken"),
        make_sampler(config, watched.plan),
    ):
        pass


def test_nothing_is_left_of_a_driver_that_was_killed(watched):
    watched.sampler.close()
    names = set(os.listdir("/dev/shm"))
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, watched.raylets.address], stdout=subprocess.PIPE
    )
    # Ray may print before it, of nodes that tests have killed.
    assert any(line == b"sampling\n" for line in driver.stdout)
    family = [
        each
        for node in watched.nodes
        for process in [actor(node)]
        for each in (process, *process.children(recursive=True))
    ]
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not any(alive(each) for each in family))
    # Semaphores of multiprocessing are those of other programs: fastrl's have no name.
    left = set(os.listdir("/dev/shm")) - names
    assert not [name for name in left if not name.startswith("sem.mp-")]


_DRIVER = """
import sys
from fastrl.config import ClusterConfig, Config, SamplerConfig
from fastrl.sampling import make_sampler
config = Config(
    env={"id": "CartPole-v1"},
    sampler=SamplerConfig(envs_per_worker=2, num_env_workers=2, rollout_length=8),
    cluster=ClusterConfig(address=sys.argv[1]),
)
if __name__ == "__main__":
    with make_sampler(config) as sampler:
        sampler.collect()
        print("sampling", flush=True)
        while True:
            sampler.collect()
"""


def alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
