from __future__ import annotations

import os
import subprocess
import sys

import pytest

START = """
import time
started = time.perf_counter()
from fastrl.envs.crafter_native import CrafterBatch
from fastrl.envs.crafter_native.world_kernels import step_worlds
CrafterBatch(2)
hits = sum(step_worlds.stats.cache_hits.values())
print(hits, time.perf_counter() - started)
"""


WORKERS = """
import os, sys
from pathlib import Path
from fastrl import load_config, make_sampler

FOLDER = sys.argv[1]

def make(num_envs):
    from fastrl.envs.crafter_native import build
    from fastrl.envs.crafter_native.world_kernels import step_worlds

    batch = build(num_envs=num_envs, area=(24, 24), symbolic=True)
    hits = sum(step_worlds.stats.cache_hits.values())
    Path(FOLDER, str(os.getpid())).write_text(str(hits))
    return batch

overrides = ["env.id=__main__:make", "sampler.num_envs=2", "sampler.num_env_workers=2"]
with make_sampler(load_config(None, [*overrides, "sampler.rollout_length=2"])) as sampler:
    sampler.collect()
print(*sorted(each.read_text() for each in Path(FOLDER).iterdir()))
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
def test_programs_that_start_together_compile_for_themselves_and_later_ones_load(tmp_path):
    together = [start(tmp_path) for _ in range(2)]
    assert all(outcome(process)[0] in (0, 1) for process in together)
    assert outcome(start(tmp_path))[0] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_of_a_program_load_what_its_probe_has_compiled(tmp_path):
    found, compiled = tmp_path / "found", tmp_path / "compiled"
    found.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(found)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(compiled)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "0 1 1\n", done.stderr


@pytest.mark.perf
@pytest.mark.timeout(600)
def test_first_start_takes_a_minute_at_most_and_later_ones_two_seconds(tmp_path):
    assert outcome(start(tmp_path))[1] <= 60
    assert min(outcome(start(tmp_path))[1] for _ in range(3)) <= 2
