"""`fastrl train` on a cluster, by YAML."""

import json
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("ray")

from tests.cluster.raylets import actor, wait_until

pytestmark = pytest.mark.ray

YAML = """
total_steps: 12000
env: {id: CartPole-v1}
sampler: {num_envs: 12, rollout_length: 32}
algorithm: {epochs: 2, minibatch_size: 96, normalize_rewards: true}
model: {normalize_observations: true}
evaluation: {episodes: 2, final_episodes: 4}
logging: {tensorboard: false, every_steps: 384}
"""
STEPS = 20 * 384


@pytest.fixture(scope="module")
def nodes(raylets):
    """Two of two cores, beside the driver."""
    return [raylets.add(), raylets.add()]


class Started:
    """`fastrl train` of `YAML` in a directory.

    Attributes:
        run: The directory of the run.
    """

    def __init__(self, directory, *overrides):
        (directory / "run.yaml").write_text(YAML)
        self.run = directory / "run"
        command = [sys.executable, "-m", "fastrl", "train", "run.yaml", "run_dir=run"]
        self.process = subprocess.Popen(
            [*command, *overrides], cwd=directory, stderr=subprocess.PIPE, text=True
        )

    def trains(self):
        """Wait until it has learnt."""
        metrics = self.run / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), 100)

    def ended(self, code=0):
        """Wait for its end; return its errors."""
        _, said = self.process.communicate(timeout=100)
        assert self.process.returncode == code, said
        return said

    @property
    def steps(self):
        """That it has learnt from."""
        return int(json.loads((self.run / "summary.json").read_text())["steps"])

    @property
    def parameters(self):
        """Of the last checkpoint."""
        last = max((self.run / "checkpoints").glob("step_*"))
        found = load_file(last / "model.safetensors")
        return torch.cat([each.flatten().double() for each in found.values()])


def test_a_run_on_two_nodes_ends_although_one_is_lost(raylets, nodes, tmp_path):
    started = Started(tmp_path, f"cluster.address={raylets.address}")
    started.trains()
    actor(nodes[0]).kill()
    started.ended()
    assert started.steps >= 12_000
    faults = [json.loads(x) for x in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert faults[0]["worker"] in ("node-0", "node-1")
    assert "its rollout in flight is lost" in faults[0]["cause"]


def test_learners_on_all_nodes_learn_what_one_learns(raylets, nodes, tmp_path):
    (tmp_path / "one").mkdir()
    one = Started(tmp_path / "one", f"total_steps={STEPS}")
    one.ended()
    many = Started(
        tmp_path,
        f"total_steps={STEPS}",
        f"cluster.address={raylets.address}",
        "cluster.mode=gradients",
    )
    learners = [actor(node, "RankActor") for node in nodes]
    workers = [each for learner in learners for each in learner.children(recursive=True)]
    many.ended()
    torch.testing.assert_close(many.parameters, one.parameters, rtol=1e-6, atol=2e-6)
    wait_until(lambda: not any(map(psutil.Process.is_running, [*learners, *workers])))


def test_learners_continue_without_one_that_is_killed_where_that_is_configured(
    raylets, nodes, tmp_path
):
    common = [f"cluster.address={raylets.address}", "cluster.mode=gradients"]
    many = Started(tmp_path, *common, "cluster.elastic=true", "total_steps=40000")
    many.trains()
    actor(nodes[0], "RankActor").kill()
    said = many.ended()
    assert "rank 1 has died" in said
    assert many.steps >= 40_000
    # Without the key it ends, saved.
    (tmp_path / "run").rename(tmp_path / "before")
    many = Started(tmp_path, *common, "total_steps=100000000")
    many.trains()
    actor(nodes[1], "RankActor").kill()
    (line,) = [line for line in many.ended(code=1).splitlines() if "error" in line]
    assert "rank 2 has died" in line
    saved = max((many.run / "checkpoints").glob("step_*")).name
    steps = int(saved.removeprefix("step_")) + 384
    command = [sys.executable, "-m", "fastrl", "resume", "run", "cluster=null"]
    subprocess.run([*command, f"total_steps={steps}"], cwd=tmp_path, check=True, timeout=100)
    assert many.steps == steps


def test_plan_measures_the_link_of_a_cluster(raylets, nodes, tmp_path):
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "fastrl", "throughput", "--env", "fastrl/CartPole-v1"]
    command += ["--seconds", "0.2", "--repeats", "1", "--plan-nodes", "2", "--json", str(file)]
    subprocess.run([*command, f"cluster.address={raylets.address}"], check=True, timeout=100)
    network = json.loads(file.read_text())["scaling"]["network"]
    assert network["is_measured"]
    assert network["bytes_per_s"] > 1e7
