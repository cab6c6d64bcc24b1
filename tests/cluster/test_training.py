"""`fastrl train` on a cluster, by YAML."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("ray")

from tests.cluster.raylets import actor, wait_until

pytestmark = pytest.mark.ray

YAML = """
total_steps: 12000
env: {id: CartPole-v1}
sampler: {num_envs: 8, rollout_length: 32}
algorithm: {epochs: 2, minibatch_size: 128, normalize_rewards: true}
evaluation: {episodes: 2, final_episodes: 4}
logging: {tensorboard: false, every_steps: 512}
"""


def test_a_run_on_two_nodes_ends_although_one_is_lost(raylets, tmp_path):
    nodes = [raylets.add(), raylets.add()]
    (tmp_path / "run.yaml").write_text(YAML)
    command = [sys.executable, "-m", "fastrl", "train", "run.yaml", "run_dir=run"]
    command.append(f"cluster.address={raylets.address}")
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), 100)
    actor(nodes[0]).kill()
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] >= 12_000
    faults = [json.loads(x) for x in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert faults[0]["worker"] in ("node-0", "node-1")
    assert "its rollout in flight is lost" in faults[0]["cause"]
