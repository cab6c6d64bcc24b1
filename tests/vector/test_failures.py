"""Environments that raise, die, hang or break their contract are named; nothing hangs with them."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from multiprocessing import current_process

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.error import ClosedEnvironmentError

import fastrl
from fastrl.errors import EnvError, FastrlError, WorkerError
from fastrl.vector import ArgumentError, EnvFailure, EnvTimeoutError
from tests.counting_env import CountingEnv
from tests.vector.envs import ClosingEnv, TellingEnv, WaitingEnv, WordyEnv

BACKENDS = ("serial", "threads", "processes")
ACTIONS = np.array([1, 2, 3, 4])


@pytest.fixture(autouse=True)
def _environments_that_hang_are_soon_left_behind(monkeypatch):
    for driver in ("thread_driver", "process_driver"):
        monkeypatch.setattr(f"fastrl.vector.{driver}.GRACE_S", 0.2)


def make(backend, fault, *, fault_tag=12, fault_in="step", fault_at=1, **kwargs):
    factory = partial(
        CountingEnv, fault=fault, fault_tag=fault_tag, fault_in=fault_in, fault_at=fault_at
    )
    return fastrl.make_vec(factory, 4, backend=backend, num_workers=2, **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_in_a_step_says_who_raised_with_what(backend):
    envs = make(backend, "raise")
    envs.reset(seed=10)
    envs.step(ACTIONS)
    pids = list(envs.pids().values())
    with pytest.raises(EnvFailure) as caught:
        envs.step(ACTIONS)
    error = caught.value
    assert (error.env_index, error.action, error.seed) == (2, 3, 12)
    assert error.worker == {"threads": "thread-1", "processes": "env-worker-1"}.get(
        backend, "serial"
    )
    line = str(error).splitlines()[0]
    assert "env 2 of 'tests.counting_env:CountingEnv'" in line
    assert f"({error.worker}, last seed 12)" in line
    assert "RuntimeError: fault in step 1 of tag 12" in line
    assert line.endswith("in step(action=3)")
    if backend == "serial":
        assert isinstance(error.__cause__, RuntimeError)
    else:
        assert "_maybe_fail" in error.remote_traceback
    assert isinstance(error, WorkerError)
    assert isinstance(error, EnvError)
    with pytest.raises(ClosedEnvironmentError, match="fault in step 1"):
        envs.step(ACTIONS)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_in_a_reset_says_so(backend):
    envs = make(backend, "raise", fault_in="reset", fault_at=0)
    with pytest.raises(EnvFailure, match=r"env 2 .*fault in reset 0 of tag 12.*, in reset"):
        envs.reset(seed=10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_while_an_environment_is_built(backend):
    factories = [CountingEnv, CountingEnv, partial(CountingEnv, fault="raise", fault_in="init")]
    with pytest.raises(EnvError, match=r"fault in init 0"):
        fastrl.make_vec(factories, backend=backend, num_workers=2)


class LeavingEnv(WaitingEnv):
    """Ends the program from inside a step, as games do whose window was closed."""

    def step(self, action):
        raise SystemExit(3)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_environment_that_ends_the_program_fails_without_waiting_for_the_deadline(backend):
    envs = fastrl.make_vec(LeavingEnv, 2, backend=backend, timeout_s=20)
    envs.reset()
    with pytest.raises(EnvFailure, match="raised SystemExit: 3"):
        envs.step(np.zeros((2, 1)))


@pytest.mark.parametrize("fault", ["build", "close"])
@pytest.mark.parametrize("backend", ["serial", "threads"])
def test_every_environment_is_closed_whatever_another_one_does(backend, fault):
    ClosingEnv.open.clear()
    make = partial(
        fastrl.make_vec,
        partial(ClosingEnv, fault=fault),
        3,
        backend=backend,
        num_workers=1,
        env_kwargs=lambda index: {"number": index},
    )
    if fault == "build":
        with pytest.raises(EnvError, match="no such simulator"):
            make()
    else:
        envs = make()
        assert ClosingEnv.open == {0, 1, 2}
        with expected_in(backend, OSError, "cannot be closed"):
            envs.close()
    assert not ClosingEnv.open


def test_environment_whose_wrapper_raises_is_closed():
    def broken(env):
        raise LookupError("no such camera")

    ClosingEnv.open.clear()
    with pytest.raises(EnvError, match=r"^wrappers: .*broken raised LookupError: no such camera$"):
        fastrl.make_vec(ClosingEnv, 2, backend="serial", wrappers=[broken], number=0)
    assert not ClosingEnv.open


@contextmanager
def expected_in(backend, error, message):
    """Expect an error here, or in the thread that steps."""
    if backend == "serial":
        with pytest.raises(error, match=message):
            yield
    else:
        told = []
        before, threading.excepthook = threading.excepthook, told.append
        try:
            yield
        finally:
            threading.excepthook = before
        assert [type(each.exc_value) for each in told] == [error]


class BreakingEnv(WaitingEnv):
    """Its simulator is gone with the first step, so that it cannot be closed either."""

    is_gone = False

    def step(self, action):
        self.is_gone = True
        raise ConnectionError("the simulator is gone")

    def close(self):
        if self.is_gone:
            raise OSError("cannot be closed")


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_failure_is_told_before_what_closing_after_it_raises(backend):
    envs = fastrl.make_vec(BreakingEnv, 2, backend=backend)
    envs.reset()
    with pytest.raises(EnvFailure, match="raised ConnectionError: the simulator is gone, in step"):
        envs.step(np.zeros((2, 1)))
    with pytest.raises(ClosedEnvironmentError, match="the simulator is gone"):
        envs.step(np.zeros((2, 1)))


@pytest.mark.parametrize("fault", ["kill", "exit", "abort"])
def test_death_of_a_worker_names_the_environment(fault):
    envs = make("processes", fault)
    envs.reset(seed=10)
    envs.step(ACTIONS)
    with pytest.raises(EnvFailure) as caught:
        envs.step(ACTIONS)
    said = {"kill": "SIGKILL", "abort": "SIGABRT", "exit": "exit code 3"}[fault]
    assert said in str(caught.value)
    assert (caught.value.env_index, caught.value.action, caught.value.seed) == (2, 3, 12)


def test_worker_killed_from_outside_between_steps_is_noticed():
    envs = make("processes", None)
    envs.reset(seed=10)
    os.kill(envs.pids()["env-worker-1"], signal.SIGKILL)
    with pytest.raises(EnvFailure, match=r"env-worker-1.*SIGKILL"):
        envs.step(ACTIONS)


class TalkativeEnv(WaitingEnv):
    """Tells more in a step than a pipe holds."""

    def step(self, action):
        return *super().step(action)[:4], {"story": "x" * 10**6}


def test_worker_killed_in_the_middle_of_its_answer_is_noticed():
    envs = fastrl.make_vec(TalkativeEnv, 2, backend="processes", num_workers=1)
    envs.reset()
    envs.step_async(np.zeros((2, 1)))
    time.sleep(0.5)  # it has begun to answer, and waits for the caller to read
    os.kill(envs.pids()["env-worker-0"], signal.SIGKILL)
    with pytest.raises(EnvFailure, match=r"env-worker-0.*SIGKILL"):
        envs.step_wait()


def test_worker_that_takes_no_arguments_is_named_at_the_deadline():
    envs = fastrl.make_vec(WaitingEnv, 2, backend="processes", num_workers=2, timeout_s=1.0)
    envs.reset()
    os.kill(envs.pids()["env-worker-1"], signal.SIGSTOP)
    with pytest.raises(EnvTimeoutError, match=r"env 1 .*env-worker-1.* within 1 s"):
        envs.parallel(lambda env, argument: None, [np.zeros(10**6)] * 2)


def test_worker_killed_before_it_is_given_objects_is_noticed():
    envs = fastrl.make_vec(WordyEnv, 2, backend="processes", num_workers=1)
    envs.reset()
    pid = envs.pids()["env-worker-0"]
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)], timeout=10)
    with pytest.raises(EnvFailure, match=r"env-worker-0.*SIGKILL"):
        envs.step(("a", "b"))


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_environment_that_hangs_is_named_at_the_deadline(backend):
    envs = make(backend, "hang", timeout_s=0.5)
    envs.reset(seed=10)
    envs.step(ACTIONS)
    start = time.monotonic()
    with pytest.raises(EnvTimeoutError, match=r"did not answer within 0\.5 s") as caught:
        envs.step(ACTIONS)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.env_index, caught.value.action, caught.value.seed) == (2, 3, 12)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_deadline_of_a_single_call(backend):
    envs = fastrl.make_vec(SlowCallEnv, 2, backend=backend)
    envs.reset()
    envs.call_async("step_slowly")
    with pytest.raises(TimeoutError):
        envs.call_wait(timeout=0.2)


class SlowCallEnv(WaitingEnv):
    """Has a method that takes a minute."""

    def step_slowly(self):
        time.sleep(60)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_close_of_environments_that_hang_returns(backend):
    envs = fastrl.make_vec(WaitingEnv, 2, backend=backend)
    envs.reset()
    envs.step_async(np.full((2, 1), 600.0))
    start = time.monotonic()
    envs.close()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_close_wakes_who_waits_for_a_step_in_another_thread(backend):
    envs = fastrl.make_vec(WaitingEnv, 2, backend=backend, timeout_s=100)
    envs.reset()
    envs.step_async(np.full((2, 1), 600.0))
    closing = threading.Timer(0.2, envs.close)
    closing.start()
    start = time.monotonic()
    with pytest.raises(ClosedEnvironmentError, match="closed meanwhile"):
        envs.step_wait()
    assert time.monotonic() - start < 50
    closing.join()


def test_error_while_one_environment_is_timed_is_told_like_any_other():
    with pytest.raises(EnvFailure, match=r"env 0 of .*BreakingEnv' .* is gone, while it was timed"):
        fastrl.make_vec(BreakingEnv, 2)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_fork_of_the_program_neither_ends_nor_steps_the_environments_of_its_parent(backend):
    envs = fastrl.make_vec(WaitingEnv, 2, backend=backend)
    envs.reset()
    pid = os.fork()
    if pid == 0:
        outcome = 1
        try:
            with pytest.raises(ClosedEnvironmentError, match="this process is a fork of it"):
                envs.step(np.zeros((2, 1)))
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert envs.step(np.zeros((2, 1)))[0].ravel().tolist() == [1.0, 1.0]
    envs.close()


def test_more_environments_than_the_memory_holds_are_refused_in_words(monkeypatch):
    monkeypatch.setattr("fastrl.shared.memory.free_bytes", lambda: 100)
    with pytest.raises(FastrlError, match="2 environments are too many: not enough memory") as told:
        fastrl.make_vec(WaitingEnv, 2, backend="processes")
    assert "sampler" not in str(told.value)


def test_daemonic_process_is_told_that_it_may_start_no_workers(monkeypatch):
    monkeypatch.setattr(type(current_process()), "daemon", True)
    with pytest.raises(FastrlError, match="this process is daemonic"):
        fastrl.make_vec(WaitingEnv, 2, backend="processes")


@pytest.mark.parametrize("backend", ["serial", "threads"])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((np.zeros(2), 0.0, False, False, {}), r"env 1 returned an observation of shape \(2,\)"),
        (("no", 0.0, False, False, {}), "env 1 returned an observation"),
        ((np.zeros(1), "much", False, False, {}), "env 1 returned the reward 'much'"),
        ((np.zeros(1), 0.0, False), r"env 1 returned 3 values from step\(\): \(array.*; expected"),
    ],
)
def test_broken_contract_is_told(backend, returned, message):
    class Broken(WaitingEnv):
        def step(self, action):
            return returned if action[0] else (np.zeros(1), 0.0, False, False, {})

    envs = fastrl.make_vec(Broken, 2, backend=backend, num_workers=1)
    envs.reset()
    with pytest.raises(EnvFailure, match=message):
        envs.step(np.array([[0.0], [1.0]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_episode_that_is_over_is_not_stepped_without_autoreset(backend):
    envs = fastrl.make_vec(partial(CountingEnv, length=2), 2, backend=backend, autoreset="disabled")
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(2, int))
    with pytest.raises(EnvFailure, match="its episode is over"):
        envs.step(np.zeros(2, int))


def test_interrupted_step_ends_it_instead_of_mixing_up_the_next():
    envs = fastrl.make_vec(WaitingEnv, 2, backend="processes")
    envs.reset()
    envs.step_async(np.full((2, 1), 60.0))
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            envs.step_wait()
    finally:
        signal.signal(signal.SIGALRM, previous)
    with pytest.raises(ClosedEnvironmentError, match="interrupted step"):
        envs.reset()


def test_error_that_cannot_travel_is_told_in_words():
    class Strange(gymnasium.Env):
        observation_space = TellingEnv.observation_space["place"]
        action_space = TellingEnv.action_space

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 3)), {}

        def odd(self):
            class OddError(Exception):
                def __init__(self, one, two):
                    super().__init__("odd")

            raise OddError(1, 2)

    envs = fastrl.make_vec(Strange, 2, backend="processes")
    envs.reset()
    with pytest.raises(RuntimeError, match="OddError: odd"):
        envs.call("odd")
    envs.reset()
    envs.close()


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_message_larger_than_a_pipe_arrives_also_without_a_deadline(backend):
    never = dict.fromkeys(("timeout_s", "start_timeout_s", "close_timeout_s"), math.inf)
    envs = fastrl.make_vec(WaitingEnv, 2, backend=backend, **never)
    envs.reset_async()
    envs.reset_wait(math.inf)
    big = np.arange(300_000)
    for returned in envs.parallel(lambda env, argument: argument, [big, big]):
        assert np.array_equal(returned, big)
    envs.close()


def test_arguments_that_cannot_travel_are_refused_and_nothing_else_is_harmed():
    envs = fastrl.make_vec(TellingEnv, 2, backend="processes", num_workers=2)
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match=r"set_attr: cannot be sent to a worker.*lock"):
        envs.set_attr("bound", [1.0, threading.Lock()])
    assert envs.get_attr("bound") == (9.0, 9.0)
    envs.close()


def test_arguments_that_are_refused_leave_everything_as_it_was():
    envs = fastrl.make_vec("CartPole-v1", 2, backend="processes")
    first, _ = envs.reset(seed=0)
    with pytest.raises(ArgumentError):
        envs.step([0])
    seen = envs.step([0, 1])[0]
    other = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    assert np.array_equal(other.reset(seed=0)[0], first)
    assert np.array_equal(other.step([0, 1])[0], seen)
    envs.close()
