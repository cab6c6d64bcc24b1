"""Nothing of a run is left once it has ended or was killed: no process, and no file."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from fastrl.workers.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's death signals")

SCRIPT = textwrap.dedent(
    """
    import os, pathlib, psutil, signal, time
    from test_survival import hold_the_gil, leave_children, wait_for
    from fastrl.workers.supervisor import Supervisor

    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.2)
    """
)


def hold_the_gil(ready):
    """Stay in native code that lets no other thread run."""
    ready.touch()
    ctypes.PyDLL(None).sleep(600)


def leave_children(ready):
    """Start two processes, the one with exec and the other without, and write who they are."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = subprocess.Popen(command).pid
    if not (forked := os.fork()):
        time.sleep(600)
    written = ready.with_suffix(".partial")
    written.write_text(f"{started} {forked}")
    written.rename(ready)
    time.sleep(600)


def wait_for(ready):
    """Return the process ids that a worker writes into a file."""
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(pid) for pid in ready.read_text().split()]


@pytest.fixture
def started(tmp_path):
    """Start the script and its body; return the process, and the ids that it prints."""
    processes = []

    def start(body, **environment):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + textwrap.dedent(body) + "\ntime.sleep(600)")
        process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=dict(os.environ)
            | {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
            | environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        assert all(map(alive, pids))
        return process, pids

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def supervisor():
    made = Supervisor(request_stop=lambda: None, grace_s=0.2)
    yield made
    made.stop()


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(pids, within_s=60.0):
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"still alive: {left}")
        time.sleep(0.02)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_nothing_is_left_of_a_run_that_is_ended(tmp_path, started, number):
    """Its workers: started by a thread that has ended, in native code, stopped, with children."""
    directory = tmp_path / ("deep" * 50)  # longer than the address of a socket may be
    directory.mkdir()
    body = """
    import threading
    starter = threading.Thread(target=supervisor.start, args=("plain", time.sleep, 600))
    starter.start()
    starter.join()
    time.sleep(0.3)
    in_native_code, children = pathlib.Path("native"), pathlib.Path("children")
    supervisor.start("native", hold_the_gil, in_native_code)
    supervisor.start("stopped", time.sleep, 600)
    supervisor.start("parent", leave_children, children)
    wait_for(in_native_code)
    supervisor.check()
    pids = supervisor.pids()
    os.kill(pids["stopped"], signal.SIGSTOP)
    if not (fork := os.fork()):
        time.sleep(600)
    server = psutil.Process(pids["plain"]).ppid()
    print(fork, server, *wait_for(children), *pids.values(), flush=True)
    """
    process, (fork, *pids) = started(body, TMPDIR=str(directory))
    process.send_signal(number)
    process.wait()
    assert_gone(pids)
    assert list(directory.iterdir()) == []
    assert alive(fork)
    os.kill(fork, signal.SIGKILL)
    assert process.stdout.read() == ""  # a reader of what the run writes sees its end


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_children_of_an_environment_end_with_its_worker(supervisor, tmp_path, end):
    supervisor.start("a", leave_children, tmp_path / "ready")
    pids = [*wait_for(tmp_path / "ready"), *supervisor.pids().values()]
    supervisor.kill("a") if end == "kill" else supervisor.stop()
    assert_gone(pids)


def test_forked_child_of_a_worker_can_be_terminated(supervisor, tmp_path):
    supervisor.start("a", leave_children, tmp_path / "ready")
    _, forked = wait_for(tmp_path / "ready")
    os.kill(forked, signal.SIGTERM)
    assert_gone([forked])
    supervisor.check()


def test_fork_of_a_run_can_start_workers(supervisor, tmp_path):
    supervisor.start("a", time.sleep, 600)
    if not (fork := os.fork()):
        with contextlib.suppress(BaseException):
            made = Supervisor(request_stop=lambda: None, grace_s=0.2)
            made.start("b", hold_the_gil, tmp_path / "ready")
            wait_for(tmp_path / "ready")
            made.stop()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(fork, 0)[1] == 0
    supervisor.check()
