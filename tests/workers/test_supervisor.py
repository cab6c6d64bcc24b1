"""Processes are started, watched and ended, whatever happens to any of them."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from fastrl.errors import EnvError, WorkerError
from fastrl.workers.supervisor import Supervisor, call_in_child


def fail_with_a_local(number):
    """Raise, with something to find in the traceback."""
    raise ValueError(f"number {number} is bad")


def wait_for_error(supervisor, timeout_s=5.0):
    """Return the error that `Supervisor.check` raises."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            supervisor.check()
        except WorkerError as error:
            return error
        time.sleep(0.01)
    pytest.fail("no error was reported in time")


@pytest.fixture
def supervisor():
    made = Supervisor(request_stop=lambda: None, grace_s=0.2)
    yield made
    made.stop()


def test_exception_arrives_with_name_and_remote_traceback(supervisor):
    supervisor.start("worker-7", fail_with_a_local, 42)
    error = wait_for_error(supervisor)
    assert error.worker == "worker-7"
    assert "worker-7 failed: ValueError: number 42 is bad" in str(error)
    assert "in fail_with_a_local" in error.remote_traceback


def test_killed_worker_is_reported_with_its_signal(supervisor):
    supervisor.start("worker-0", time.sleep, 60)
    supervisor.check()
    os.kill(supervisor.pids()["worker-0"], signal.SIGKILL)
    assert "worker-0 was killed by SIGKILL" in str(wait_for_error(supervisor))


def test_worker_that_ends_by_itself_is_reported(supervisor):
    supervisor.start("worker-0", os._exit, 3)
    assert "ended unexpectedly with exit code 3" in str(wait_for_error(supervisor))


def test_stop_ends_workers_that_do_not_listen():
    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.2)
    for index in range(3):
        supervisor.start(f"worker-{index}", time.sleep, 60)
    pids = supervisor.pids().values()
    start = time.monotonic()
    supervisor.stop()
    supervisor.stop()
    assert time.monotonic() - start < 3
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_function_of_the_main_script_is_evaluated_in_a_child():
    pid = call_in_child(lambda: os.getpid(), timeout_s=30)
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_own_errors_of_a_child_are_raised_here():
    def refuse():
        raise EnvError("no such thing")

    with pytest.raises(EnvError, match=r"^no such thing$"):
        call_in_child(refuse, timeout_s=30)


def test_child_that_hangs_is_given_up():
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"within 0\.5 s"):
        call_in_child(lambda: time.sleep(60), timeout_s=0.5)
    assert time.monotonic() - start < 10


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from fastrl.workers.supervisor import Supervisor

    print("imported", flush=True)  # once: workers must not run this script again

    def work():
        time.sleep(60)

    supervisor = Supervisor(request_stop=lambda: None)
    supervisor.start("a", {target})
    supervisor.start("b", {target})
    print(*supervisor.pids().values(), flush=True)
    {then}
    """
)


def run_script(tmp_path, then, target="time.sleep, 60"):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(then=then, target=target))
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pids_of(process):
    assert process.stdout.readline() == "imported\n"
    return [int(pid) for pid in process.stdout.readline().split()]


def assert_gone(pids, within_s=5.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p)]
        if not alive:
            return
        time.sleep(0.05)
    pytest.fail(f"still alive: {alive}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_worker_outlives_its_parent(tmp_path, number):
    process = run_script(tmp_path, "time.sleep(60)")
    pids = pids_of(process)
    process.send_signal(number)
    process.wait(timeout=10)
    assert_gone(pids)
    process.communicate()


def test_workers_end_with_a_script_that_forgot_them(tmp_path):
    process = run_script(tmp_path, "")
    pids = pids_of(process)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert rest == ""
    assert_gone(pids)
