"""`fastrl sweep` on a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

from fastrl.errors import ConfigError
from fastrl.sweeps.node_trials import Order, TrialActor
from tests.cluster.raylets import wait_until

pytestmark = pytest.mark.ray

ENVIRONMENT = """
import time
from pathlib import Path

from gymnasium.envs.classic_control import CartPoleEnv


class SlowCartPole(CartPoleEnv):
    def step(self, action):
        if Path("slow").exists():
            time.sleep(0.02)
        return super().step(action)
"""
SHORT = [
    *("--env", "slow_cartpole:SlowCartPole", "total_steps=512", "sampler.num_envs=2"),
    *("sampler.rollout_length=16", "algorithm.minibatch_size=32", "logging.tensorboard=false"),
    *("evaluation.enabled=false", "logging.every_steps=32", "checkpoint.every_steps=32"),
]


@pytest.mark.slow
def test_trials_of_a_node_that_is_lost_continue_on_another_one(raylets, tmp_path):
    (tmp_path / "slow_cartpole.py").write_text(ENVIRONMENT)
    (tmp_path / "slow").touch()
    nodes = [raylets.add(cores=1), raylets.add(cores=1)]
    command = [sys.executable, "-m", "fastrl", "sweep", "--seeds", "0:2", "--dir", "all", *SHORT]
    command += [f"cluster.address={raylets.address}", "cluster.node_timeout_s=8"]
    started = subprocess.Popen(
        [*command, "--json", "found.json"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        for number in (0, 1):
            saved = tmp_path / f"all/trial-00{number}/checkpoints"
            wait_until(lambda saved=saved: any(saved.glob("step_*")), 100)
        raylets.remove(nodes.pop())
        (tmp_path / "slow").unlink()
        _, said = started.communicate(timeout=150)
    finally:
        started.kill()
        started.communicate()
    assert started.returncode == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(each["state"], each["steps"]) for each in found["trials"]] == [("finished", 512)] * 2
    assert "is started again" in said


def test_a_directory_that_a_node_does_not_see_is_one_line(tmp_path):
    from fastrl.cluster.node_sampler import packages

    order = Order(["train"], 0, 1, 1, Path("log"), b"", str(tmp_path), tmp_path / "sweep.jsonl", {})
    with pytest.raises(ConfigError, match="in a directory that all machines share"):
        TrialActor().open(packages(), order)
