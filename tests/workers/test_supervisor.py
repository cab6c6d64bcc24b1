"""Processes are started, watched and ended, also after failures."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fastrl.errors import EnvError, FastrlError, WorkerError
from fastrl.workers import processes
from fastrl.workers import supervisor as supervisor_module
from fastrl.workers.supervisor import Supervisor, call_in_child


def fail_with_a_local(number):
    """Raise, with something to find in the traceback."""
    raise ValueError(f"number {number} is bad")


def take_too_much():
    """Ask for more memory than any machine has."""
    np.empty((2**22, 2**22), np.float32)


class FailsToUnpack:
    def __reduce__(self):
        return fail_with_a_local, (42,)


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError("no text")


def fail_unprintably():
    raise UnprintableError


def fail_at_length():
    """Raise more than an unread pipe holds."""
    raise ValueError("begin " + "x" * 10**6 + " end")


def fail_with_a_thread_that_goes_on():
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise ValueError("not alone")


def leave_a_child_behind():
    """Die while a child keeps all descriptors open."""
    if os.fork():
        os._exit(3)
    time.sleep(15)
    os._exit(0)


def close_descriptors():
    """Close all pipes, and stay."""
    os.closerange(3, 256)
    time.sleep(60)


def wait_for_error(supervisor, timeout_s=60.0):
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


def test_workers_that_have_ended_are_not_waited_for(supervisor, monkeypatch):
    monkeypatch.setattr("fastrl.workers.supervisor._SLICE_S", 30.0)
    supervisor.start("worker-0", time.sleep, 0.0)
    while psutil.pid_exists(supervisor.pids()["worker-0"]):
        time.sleep(0.01)
    began_s = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began_s < 10


def test_exception_arrives_with_name_and_remote_traceback(supervisor):
    supervisor.start("worker-7", fail_with_a_local, 42)
    error = wait_for_error(supervisor)
    assert error.worker == "worker-7"
    assert "worker-7 failed: ValueError: number 42 is bad" in str(error)
    assert "in fail_with_a_local" in error.remote_traceback


def test_lack_of_memory_of_a_worker_is_one_line(supervisor):
    supervisor.start("worker-7", take_too_much)
    error = wait_for_error(supervisor)
    assert re.match(r"worker-7 failed: not enough memory: .*64\.0 TiB.* are free", str(error))
    assert error.remote_traceback == ""


def test_worker_whose_arguments_cannot_be_unpacked_is_reported(supervisor):
    supervisor.start("worker-7", print, FailsToUnpack())
    assert "worker-7 failed: ValueError: number 42 is bad" in str(wait_for_error(supervisor))


def test_lack_of_memory_of_a_child_is_one_line():
    with pytest.raises(FastrlError, match=r"^not enough memory: .*64\.0 TiB.* are free"):
        call_in_child(take_too_much, timeout_s=60)


def test_killed_worker_is_reported_with_its_signal(supervisor):
    supervisor.start("worker-0", time.sleep, 60)
    supervisor.check()
    os.kill(supervisor.pids()["worker-0"], signal.SIGKILL)
    assert "worker-0 was killed by SIGKILL" in str(wait_for_error(supervisor))


def test_worker_that_ends_by_itself_is_reported(supervisor):
    supervisor.start("worker-0", os._exit, 3)
    assert "ended unexpectedly with exit code 3" in str(wait_for_error(supervisor))


def test_worker_without_pipes_is_reported(supervisor):
    supervisor.start("worker-0", close_descriptors)
    assert "worker-0 has closed its pipes and did not end" in str(wait_for_error(supervisor))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (fail_unprintably, "worker-0 failed: UnprintableError: .*cannot be printed"),
        (fail_at_length, r"worker-0 failed: ValueError: begin x+ \[…\] x+ end"),
        (fail_with_a_thread_that_goes_on, "worker-0 failed: ValueError: not alone"),
        (leave_a_child_behind, "worker-0 ended unexpectedly with exit code 3"),
    ],
)
def test_failure_is_reported_however_hard_it_is_to_tell(supervisor, target, told):
    supervisor.start("worker-0", target)
    assert re.match(told, str(wait_for_error(supervisor)))


@pytest.mark.skipif(sys.platform != "linux", reason="others have no names for processes")
def test_system_tells_workers_apart(supervisor):
    supervisor.start("env-worker-3", time.sleep, 600)
    process = psutil.Process(supervisor.pids()["env-worker-3"])
    deadline = time.monotonic() + 60
    while process.name() != "env-worker-3":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_worker_that_failed_is_replaced_under_its_name(supervisor):
    supervisor.start("worker-0", fail_with_a_local, 42)
    supervisor.start("worker-1", time.sleep, 60)
    failures = []
    deadline = time.monotonic() + 60
    while not failures and time.monotonic() < deadline:
        failures = supervisor.failures()
        time.sleep(0.01)
    assert [error.worker for error in failures] == ["worker-0"]
    assert list(supervisor.pids()) == ["worker-1"]
    supervisor.start("worker-0", time.sleep, 60)
    assert supervisor.failures() == []
    pid = supervisor.pids()["worker-0"]
    supervisor.kill("worker-0")
    assert_gone([pid])
    assert supervisor.failures() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_to_all_processes_leaves_the_workers_to_their_supervisor(supervisor, number):
    supervisor.start("worker-0", count_signals, 0.2)
    worker = psutil.Process(supervisor.pids()["worker-0"])
    wait_until(lambda: number in handled(worker.pid))
    for pid in (worker.ppid(), worker.pid):  # the fork server and the worker
        os.kill(pid, number)
    time.sleep(0.2)
    supervisor.check()
    assert worker.is_running()


def test_stopped_fork_server_is_not_waited_for(supervisor, monkeypatch):
    monkeypatch.setattr(processes, "_CHECK_S", 0.1)
    supervisor.start("worker-0", time.sleep, 60)
    os.kill(psutil.Process(supervisor.pids()["worker-0"]).ppid(), signal.SIGSTOP)
    supervisor.start("worker-1", time.sleep, 60)
    assert "worker-1" in supervisor.pids()
    # Workers end with the server that has forked them, and are told of.
    assert wait_for_error(supervisor).worker == "worker-0"


def test_stopped_fork_server_does_not_hold_up_the_end(supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_KILLED_S", 600.0)  # longer than the test's timeout
    for name in ("worker-0", "worker-1"):
        supervisor.start(name, time.sleep, 600)
    pids = list(supervisor.pids().values())
    os.kill(psutil.Process(pids[0]).ppid(), signal.SIGSTOP)
    supervisor.stop()
    assert_gone(pids)


def test_worker_does_not_keep_its_arguments_twice():
    def number_kept():
        _, work, *_ = multiprocessing.current_process()._args
        return len(work)

    assert call_in_child(number_kept, 60.0) == 0


def count_signals(slice_s):
    while True:
        time.sleep(slice_s)


def handled(pid):
    """Return the signals that a process ignores or handles."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(lines["SigIgn"], 16) | int(lines["SigCgt"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_stop_ends_workers_that_do_not_listen():
    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.2)
    for index in range(3):
        supervisor.start(f"worker-{index}", time.sleep, 600)
    pids = list(supervisor.pids().values())
    supervisor.stop()
    supervisor.stop()
    assert not any(alive(pid) for pid in pids)


def test_processes_that_are_stopped_by_a_signal_are_ended_as_well():
    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.2)
    supervisor.start("worker-0", time.sleep, 600)
    pid = supervisor.pids()["worker-0"]
    os.kill(pid, signal.SIGSTOP)
    supervisor.stop()
    assert not alive(pid)


def start_many(supervisor, number):
    for index in range(1, number):
        supervisor.start(f"worker-{index}", time.sleep, 600)


def test_lack_of_descriptors_is_one_line():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.2)
    try:
        supervisor.start("worker-0", time.sleep, 600)
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 9, before[1]))
        with pytest.raises(FastrlError, match=r"Too many open files; raise .* ulimit -n$"):
            start_many(supervisor, 10)
        time.sleep(0.2)
        supervisor.check()  # those that are there already go on
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        supervisor.stop()


def test_lack_of_threads_is_one_line(supervisor, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(FastrlError, match=r"^worker-0 cannot be started: no thread can be started"):
        supervisor.start("worker-0", time.sleep, 600)


def test_lack_of_threads_in_a_worker_is_reported(supervisor):
    supervisor.start("worker-0", start_worker_without_threads)
    told = str(wait_for_error(supervisor))
    assert told.startswith("worker-0 failed: FastrlError: inner cannot be started: no thread can")


def start_worker_without_threads():
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse
    Supervisor(request_stop=lambda: None).start("inner", time.sleep, 600)


def test_fork_server_that_was_killed_is_replaced(supervisor):
    supervisor.start("worker-0", time.sleep, 600)
    server = psutil.Process(supervisor.pids()["worker-0"]).parent()
    server.kill()
    error = wait_for_error(supervisor)  # it takes its workers along
    assert error.worker == "worker-0"
    assert [each.worker for each in supervisor.failures()] == ["worker-0"]
    supervisor.start("worker-0", time.sleep, 600)
    assert alive(supervisor.pids()["worker-0"])


def test_function_of_the_main_script_is_evaluated_in_a_child():
    pid = call_in_child(lambda: os.getpid(), timeout_s=60)
    assert pid != os.getpid()
    assert not alive(pid)


def test_own_errors_of_a_child_are_raised_here():
    def refuse():
        raise EnvError("no such thing")

    with pytest.raises(EnvError, match=r"^no such thing$"):
        call_in_child(refuse, timeout_s=60)


def test_other_errors_of_a_child_come_with_its_traceback():
    with pytest.raises(WorkerError, match="number 42 is bad") as caught:
        call_in_child(lambda: fail_with_a_local(42), timeout_s=60)
    assert "in fail_with_a_local" in caught.value.remote_traceback


def test_child_that_aborts_is_reported_with_its_signal():
    with pytest.raises(WorkerError, match="probe was killed by SIGABRT"):
        call_in_child(os.abort, timeout_s=60)


def test_child_that_dies_is_noticed_though_its_own_child_keeps_the_pipe_open():
    with pytest.raises(WorkerError, match="exit code 3"):
        call_in_child(leave_a_child_behind, timeout_s=10)


def test_child_that_hangs_is_given_up():
    with pytest.raises(WorkerError, match=r"within 0\.5 s"):
        call_in_child(lambda: time.sleep(600), timeout_s=0.5)


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


def alive(pid):
    """Whether a process is there; one that only waits to be collected is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(pids, within_s=60.0):
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.05)


def start_a_program(place, end):
    program = subprocess.Popen(["sh", "-c", "env -i sleep 60 & echo $!; wait"], stdout=-1)
    place.write_text(f"{program.pid} {program.stdout.readline().decode()}")
    if end == "raise":
        raise ValueError("it failed")
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["return", "raise", "kill"])
def test_what_a_worker_has_started_ends_with_it(supervisor, tmp_path, end):
    supervisor.start("worker-0", start_a_program, tmp_path / "pid", end)
    while not supervisor.failures():
        time.sleep(0.01)
    assert_gone([int(pid) for pid in (tmp_path / "pid").read_text().split()], within_s=10.0)


def test_a_supervisor_ends_only_what_its_own_worker_has_started(supervisor, tmp_path):
    place = tmp_path / "pid"
    place.write_text("")
    supervisor.start("worker-0", start_a_program_and_wait, place)
    other = Supervisor(request_stop=lambda: None)
    other.start("worker-0", start_a_program, tmp_path / "other", "kill")
    while not place.read_text() or not other.failures():
        time.sleep(0.01)
    other.stop()
    assert psutil.pid_exists(int(place.read_text().split()[0]))


def start_a_program_and_wait(place):
    start_a_program(place, "return")
    time.sleep(60)


@pytest.mark.parametrize(
    "number",
    [
        # SIGKILL: test_survival.py ends a run with more kinds of workers by it.
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, number):
    process = run_script(tmp_path, "time.sleep(60)")
    pids = pids_of(process)
    process.send_signal(number)
    process.wait(timeout=60)
    assert_gone(pids)
    process.communicate()


def test_workers_end_with_a_script_that_forgot_them(tmp_path):
    process = run_script(tmp_path, "")
    pids = pids_of(process)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest == ""
    assert_gone(pids)
