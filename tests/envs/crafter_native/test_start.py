from __future__ import annotations

import os
import subprocess
import sys

import pytest

START = """
import time
started = time.perf_counter()
from fastrl.envs.crafter_native import CrafterBatch
from fastrl.envs.crafter_native.kernels import step_worlds
CrafterBatch(2)
hits = sum(step_worlds.stats.cache_hits.values())
print(hits, time.perf_counter() - started)
"""


def start(folder):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", START]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def outcome(process):
    hits, seconds = process.communicate(timeout=300)[0].split()
    return int(hits), float(seconds)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_start_together_compile_once(tmp_path):
    together = [start(tmp_path) for _ in range(3)]
    assert sorted(outcome(process)[0] for process in together) == [0, 1, 1]
    assert outcome(start(tmp_path))[0] == 1


@pytest.mark.perf
@pytest.mark.timeout(600)
def test_first_start_takes_a_minute_at_most_and_later_ones_two_seconds(tmp_path):
    assert outcome(start(tmp_path))[1] <= 60
    assert min(outcome(start(tmp_path))[1] for _ in range(3)) <= 2
