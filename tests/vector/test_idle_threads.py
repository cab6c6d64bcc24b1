"""Torch's idle threads make room for environments, and are there again when they are needed."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

import fastrl
from fastrl.vector import idle_threads
from tests.vector.envs import OtherSpaceEnv

pytestmark = pytest.mark.skipif(
    idle_threads._pause() is None, reason="torch shares its work by another library"
)


class BriskEnv(OtherSpaceEnv):
    """Takes 5 ms for a step."""

    def step(self, action):
        time.sleep(5e-3)
        return np.zeros(1), 0.0, False, False, {}


@pytest.fixture
def stepped(monkeypatch):
    """Return a function that says how many threads a step of two processes has ended."""
    torch_before = torch.get_num_threads()
    torch.set_num_threads(2)

    def ended(cores):
        monkeypatch.setattr(idle_threads, "usable_cores", lambda: cores)
        envs = fastrl.make_vec(BriskEnv, 2, backend="processes", num_workers=2)
        envs.reset(seed=0)
        actions = np.zeros((2, 1))
        envs.step(actions)
        expected = shared_operation()
        threads = len(os.listdir("/proc/self/task"))
        envs.step(actions)
        found = threads - len(os.listdir("/proc/self/task"))
        assert shared_operation() == expected
        assert len(os.listdir("/proc/self/task")) == threads
        envs.close()
        return found

    yield ended
    torch.set_num_threads(torch_before)


def shared_operation():
    """Return the outcome of what torch shares among its threads."""
    numbers = torch.arange(1e6)
    return float((numbers * numbers).sum())


def test_idle_threads_end_where_they_take_cores_from_workers(stepped, monkeypatch):
    monkeypatch.setattr(idle_threads, "start_s", lambda _: 1e-4)  # on a busy machine it is more
    assert stepped(cores=2) == 1


def test_idle_threads_stay_where_there_are_cores_for_all(stepped):
    assert stepped(cores=3) == 0


def test_idle_threads_stay_where_they_cost_more_than_a_step(stepped, monkeypatch):
    monkeypatch.setattr(idle_threads, "start_s", lambda _: 1.0)
    assert stepped(cores=2) == 0
