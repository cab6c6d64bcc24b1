"""Environments of `make_vec` are closed, each within a deadline of its own."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

import fastrl
from tests.workers.slow_close import SlowClose, pids
from tests.workers.test_survival import assert_gone

OVERDUE = {
    "processes": [
        "probe did not close an environment within 0.2 s, and was killed with its child "
        "processes; raise close_timeout_s if it needs longer",
        "env-worker-0 did not close an environment within 0.2 s, and was killed with its "
        "child processes; raise close_timeout_s if it needs longer",
    ],
    "threads": [
        "env 0 of 'tests.workers.slow_close:SlowClose' did not return from close() within 0.2 s, "
        "and was abandoned; raise close_timeout_s if it needs longer",
        "thread-0 of 'tests.workers.slow_close:SlowClose' did not close an environment within "
        "0.2 s, and was abandoned; raise close_timeout_s if it needs longer",
    ],
}


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch):
    for driver in ("thread_driver", "process_driver"):
        monkeypatch.setattr(f"fastrl.vector.{driver}.GRACE_S", 0.2)


def close(backend, directory, close_s, **kwargs):
    """Return how many of four environments of a worker closed, and how long that took."""
    factory = partial(SlowClose, str(directory), close_s)
    envs = fastrl.make_vec(factory, 4, backend=backend, num_workers=1, **kwargs)
    before, begun_s = len(pids(directory, "closed")), time.monotonic()
    envs.close()
    return len(pids(directory, "closed")) - before, time.monotonic() - begun_s


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_every_environment_of_a_worker_has_time_to_close(backend, tmp_path, caplog):
    closed, wall_s = close(backend, tmp_path, close_s=0.15)
    assert closed == 4
    assert wall_s > 0.6
    assert_gone(pids(tmp_path, "started"))
    assert not caplog.records


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_close_that_is_overdue_is_named_and_not_waited_for(backend, tmp_path, caplog):
    closed, wall_s = close(backend, tmp_path, close_s=50, close_timeout_s=0.2)
    assert closed == 0
    assert wall_s < 50
    assert [record.getMessage() for record in caplog.records] == OVERDUE[backend]
    if backend == "threads":
        for pid in set(pids(tmp_path, "started")) - set(pids(tmp_path, "closed")):
            os.kill(pid, signal.SIGKILL)
    assert_gone(pids(tmp_path, "started"))
