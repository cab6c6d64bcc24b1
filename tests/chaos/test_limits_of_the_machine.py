"""What the system refuses: one line, exit code 2, and what was saved before stays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = (
    "train env.id=CartPole-v1 run_dir=run sampler.envs_per_worker=2 sampler.num_env_workers=1 "
    "sampler.rollout_length=8 evaluation.enabled=false logging.tensorboard=false "
    "checkpoint.every_steps=16 algorithm.minibatch_size=16 total_steps="
)


def shell(directory, script):
    """Run a script that may mount what it likes; return its exit code and its errors."""
    fastrl = f"{sys.executable} -m fastrl"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"cd {directory} && {script.format(fastrl=fastrl)}"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    return done.returncode, done.stderr


def may_mount():
    if shutil.which("unshare") is None:
        return False
    script = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(script, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not may_mount(), reason="only root may mount")


@pytest.mark.slow
@needs_mounts
def test_size_of_dev_shm_does_not_matter(tmp_path):
    code, errors = shell(
        tmp_path, f"mount -t tmpfs -o size=4k none /dev/shm && {{fastrl}} {TRAIN}32"
    )
    assert code == 0, errors


@pytest.mark.slow
@needs_mounts
def test_read_only_run_is_one_line(tmp_path):
    code, errors = shell(
        tmp_path,
        f"{{fastrl}} {TRAIN}32 && mount --bind run run && mount -o remount,ro,bind run && "
        "{fastrl} resume run total_steps=64",
    )
    assert code == 2
    line = "fastrl: error: 'run/.lock' cannot be locked: Read-only file system [config]"
    assert errors.splitlines()[-1] == line


@pytest.mark.parametrize("limit", [pytest.param(12, marks=pytest.mark.slow), 36])
def test_lack_of_descriptors_is_one_line(tmp_path, limit):
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n {limit}; exec {sys.executable} -m fastrl {TRAIN}32"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 2
    *progress, line = done.stderr.splitlines()
    assert all(each.endswith(" …") for each in progress)
    assert "Too many open files; raise the limit with ulimit -n [" in line
