"""A worker that ends for any reason ends the run in bounded time, with the cause."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from fastrl.config import Config, EnvConfig, SamplerConfig
from fastrl.errors import EnvError, FastrlError, WorkerError
from fastrl.sampling.build import make_plan as plan_of_config
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.spec import Topology
from fastrl.workers.watchdog import Deadlines
from tests.sampling.counting import CountingEnvs, abort, hang, kill, make_plan, raise_error

TOPOLOGIES = [Topology(4, 2, 0, 1), Topology(4, 2, 1, 2)]


def collect_for_ever(sampler):
    while True:
        sampler.collect()


def collect_until_error(sampler):
    """Return the error that ends a run, which leaves no process."""
    sampler.collect()
    pids = list(sampler.pids().values())
    with pytest.raises(FastrlError) as caught:
        collect_for_ever(sampler)
    assert not any(alive(pid) for pid in pids)
    return caught.value


def alive(pid):
    """Whether a process is there; one that only waits to be collected is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("topology", "fault", "told"),
    [
        (TOPOLOGIES[0], raise_error, "RuntimeError: the simulator exploded"),
        (TOPOLOGIES[1], raise_error, "RuntimeError: the simulator exploded"),
        (TOPOLOGIES[0], kill, "killed by SIGKILL"),
        (TOPOLOGIES[1], abort, "killed by SIGABRT"),
    ],
)
def test_failing_env_worker_ends_the_run_with_the_cause(topology, fault, told):
    plan = make_plan(topology, 5, build_env=lambda n: CountingEnvs(n, fault=fault, fault_at=40))
    error = collect_until_error(ProcessSampler(plan))
    assert isinstance(error, WorkerError)
    assert error.worker.startswith("env-worker-")
    assert told in str(error)
    assert ("in raise_error" in error.remote_traceback) == (fault is raise_error)


@pytest.mark.parametrize("victim", ["env-worker-1", "model-worker-0"])
def test_worker_killed_from_outside_ends_the_run_with_the_cause(victim):
    sampler = ProcessSampler(make_plan(Topology(4, 2, 1, 2), 5))
    with sampler:
        sampler.collect()
        os.kill(sampler.pids()[victim], signal.SIGKILL)
        with pytest.raises(WorkerError, match=f"{victim} was killed by SIGKILL"):
            collect_for_ever(sampler)


def test_hanging_environment_is_given_up_at_the_deadline():
    plan = make_plan(
        Topology(4, 2), 5, build_env=lambda n: CountingEnvs(n, fault=hang, fault_at=40)
    )
    sampler = ProcessSampler(plan, deadlines=Deadlines(stall_timeout_s=1.0))
    error = collect_until_error(sampler)
    assert "no env step within 1 s" in str(error)
    assert "env.step_timeout_s" in str(error)


@pytest.mark.parametrize(
    ("topology", "stage", "timeouts_s", "told"),
    [
        (0, "build", (1.0, 60.0, 60.0), "was not ready within 1 s; raise sampler.start_timeout_s"),
        (1, "reset", (60.0, 1.0, 60.0), "made no env step within 1 s; raise env.reset_timeout_s"),
        (0, "step", (60.0, 1.0, 1.0), "made no env step within 1 s; raise env.step_timeout_s"),
    ],
)
def test_environment_that_hangs_at_once_is_given_up_at_its_own_deadline(
    topology, stage, timeouts_s, told
):
    def build(num_envs):
        envs = CountingEnvs(num_envs)
        if stage == "build":
            hang()
        setattr(envs, stage, lambda *args: hang())
        return envs

    start_s, reset_s, step_s = timeouts_s
    deadlines = Deadlines(start_s, 60.0, step_timeout_s=step_s, reset_timeout_s=reset_s)
    sampler = ProcessSampler(
        make_plan(TOPOLOGIES[topology], 5, build_env=build), deadlines=deadlines
    )
    with pytest.raises(WorkerError, match=told):
        sampler.collect()


def test_spare_environment_that_hangs_in_its_reset_is_given_up_at_the_deadline():
    hanging = {"length": 2, "fault": "hang", "fault_in": "reset", "fault_at": 1}
    config = Config(
        env=EnvConfig(id="tests.counting_env:make", kwargs=hanging, action_mask="off"),
        sampler=SamplerConfig(envs_per_worker=1, num_env_workers=1, rollout_length=2, spare_envs=1),
    )
    plan = plan_of_config(config, random_actions=True)
    sampler = ProcessSampler(plan, deadlines=Deadlines(reset_timeout_s=0.5))
    error = collect_until_error(sampler)
    assert "made no env step within 0.5 s; raise env.reset_timeout_s" in str(error)


def test_environment_that_cannot_be_built_ends_the_run_with_the_cause():
    def build(num_envs):
        raise EnvError("no licence for this simulator")

    sampler = ProcessSampler(make_plan(Topology(4, 2), 5, build_env=build))
    with pytest.raises(WorkerError, match="no licence for this simulator"):
        sampler.collect()


def test_nothing_grows_over_many_samplers():
    def once():
        with ProcessSampler(make_plan(Topology(4, 2, 1, 2), 5)) as sampler:
            sampler.collect()

    process = psutil.Process()
    once()
    # What earlier tests left behind may go away meanwhile.
    gc.collect()
    descriptors, threads = process.num_fds(), process.num_threads()
    for _ in range(3):
        once()
    gc.collect()
    assert process.num_fds() <= descriptors
    assert process.num_threads() <= threads


SCRIPT = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, {root!r})
    from fastrl.sampling.process_sampler import ProcessSampler
    from fastrl.spec import Topology
    from tests.sampling.counting import make_plan

    with ProcessSampler(make_plan(Topology(4, 2, 1, 2), 50), asynchronous=True) as sampler:
        sampler.collect()
        print(*sampler.pids().values(), flush=True)
        while True:
            sampler.collect()
    """
)


def shared_memory_names(pids):
    """Return the files of shared memory that any of these processes uses under a name."""
    names = set()
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps")
        if maps.exists():
            names |= {line.split()[-1] for line in maps.read_text().splitlines() if "/shm/" in line}
    return names


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_a_run_that_is_ended_by_a_signal(tmp_path, number):
    script = tmp_path / "sample.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 3
    names = shared_memory_names([process.pid, *pids])
    process.send_signal(number)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.returncode != 0
    assert not [name for name in names if Path(name).exists()]
