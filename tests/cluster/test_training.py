"""`fastrl train` on a cluster, by YAML."""

import json
import re
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("ray")

from fastrl.cluster.connection import link_bytes_per_s
from fastrl.config import load_config
from fastrl.sampling import make_sampler
from fastrl.training import train
from fastrl.tuning import tuned
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


@pytest.fixture
def start(tmp_path):
    """`Started`, which are killed with the test."""
    started = []

    def start(name, *overrides):
        started.append(Started(tmp_path / name, *overrides))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


class Started:
    """`fastrl train` of `YAML` in a new directory.

    Attributes:
        run: The directory of the run.
        result: What it has printed to standard output at its end.
    """

    def __init__(self, directory, *overrides):
        directory.mkdir()
        (directory / "run.yaml").write_text(YAML)
        self.run = directory / "run"
        command = [sys.executable, "-m", "fastrl", "train", "run.yaml", "run_dir=run"]
        self.process = subprocess.Popen(
            [*command, *overrides],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def trains(self):
        """Wait until it has learnt."""
        metrics = self.run / "metrics.jsonl"
        wait_until(lambda: self.process.poll() or (metrics.exists() and metrics.read_text()), 100)

    def ended(self, code=0):
        """Wait for its end; return its errors."""
        self.result, said = self.process.communicate(timeout=100)
        assert self.process.returncode == code, said
        return said

    @property
    def steps(self):
        """That it has learnt from."""
        return int(json.loads((self.run / "summary.json").read_text())["steps"])


def parameters_of(run):
    """Of the last checkpoint."""
    last = max((run / "checkpoints").glob("step_*"))
    found = load_file(last / "model.safetensors")
    return torch.cat([each.flatten().double() for each in found.values()])


def test_a_run_on_two_nodes_ends_although_one_is_lost(raylets, nodes, start):
    # Some seconds: the node is lost before the end.
    longer = "total_steps=300_000", "evaluation.every_steps=100_000"
    started = start("two", f"cluster.address={raylets.address}", *longer)
    started.trains()
    raylets.remove(nodes[0])
    raylets.two()
    started.ended()
    assert "raylet" not in started.result
    assert started.steps >= 300_000
    faults = [json.loads(x) for x in (started.run / "faults.jsonl").read_text().splitlines()]
    assert faults[0]["worker"] in ("node-0", "node-1")
    cause = r"node-[01] \([\d.]+\) (has died|cannot be reached|has left the cluster)"
    assert re.fullmatch(f"{cause}; its rollout in flight is lost", faults[0]["cause"])


def gradients(raylets, *overrides):
    return [f"cluster.address={raylets.address}", "cluster.mode=gradients", *overrides]


def test_learners_on_all_nodes_learn_what_one_learns(raylets, nodes, start):
    steps = f"total_steps={STEPS}"
    many = start("many", *gradients(raylets, steps))
    many.trains()
    learners = [actor(node, "RankActor") for node in nodes]
    workers = [each for learner in learners for each in learner.children(recursive=True)]
    many.ended()
    one = train(load_config(many.run.parent / "run.yaml", [steps, f"run_dir={many.run}-of-one"]))
    torch.testing.assert_close(
        parameters_of(many.run), parameters_of(one.path), rtol=1e-6, atol=2e-6
    )
    wait_until(lambda: not any(map(psutil.Process.is_running, [*learners, *workers])))


@pytest.mark.slow
def test_learners_continue_without_one_that_died_if_they_may(raylets, nodes, start):
    many = start("elastic", *gradients(raylets, "cluster.elastic=true", "total_steps=40000"))
    many.trains()
    actor(nodes[0], "RankActor").kill()
    assert "has died" in many.ended()
    assert many.steps >= 40_000


@pytest.mark.slow
def test_learners_end_saved_with_one_that_died(raylets, nodes, start):
    many = start("many", *gradients(raylets, "total_steps=100000000"))
    many.trains()
    actor(nodes[1], "RankActor").kill()
    (line,) = [line for line in many.ended(code=1).splitlines() if "error" in line]
    assert "has died" in line
    saved = max((many.run / "checkpoints").glob("step_*")).name
    steps = int(saved.removeprefix("step_")) + 384
    command = [sys.executable, "-m", "fastrl", "resume", "run", "cluster=null"]
    command.append(f"total_steps={steps}")
    subprocess.run(command, cwd=many.run.parent, check=True, timeout=100)
    assert many.steps == steps


def test_link_to_another_node_is_measured(raylets, nodes):
    assert link_bytes_per_s(raylets.address) > 1e6


def test_one_node_of_each_kind_is_tuned(raylets, nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = raylets.add(cores=1)
    try:
        (tmp_path / "run.yaml").write_text(YAML)
        overrides = ["sampler.tune_s=3", f"cluster.address={raylets.address}"]
        config = tuned(load_config(tmp_path / "run.yaml", overrides))
        assert config.cluster is not None
        assert sorted(machine.cores for machine in config.cluster.machines) == [1, 2]
        assert config.sampler.tune_s is None
        with make_sampler(config) as sampler:
            assert sampler.collect().reward.shape[1] == 3 * 12
    finally:
        raylets.remove(small)


SCRIPT = """
import gymnasium

import fastrl


class Short(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 7.0, True, False, {}


class Small(fastrl.ActorCritic):
    def __init__(self, env_spec):
        super().__init__(env_spec, fastrl.config.ModelConfig(hidden_sizes=(4,)))


gymnasium.register("Short-v0", entry_point=Short)
fastrl.register("model", "small", Small)
names = ["env.id=Short-v0", "model.class_path=small", "cluster.address=ADDRESS"]
for mode in "rollouts", "gradients":
    config = fastrl.load_config("run.yaml", [*names, "total_steps=384", f"cluster.mode={mode}"])
    print(fastrl.train(config).outcome.evaluation.return_mean)
"""


def test_nodes_find_what_the_script_defines_and_registers(raylets, nodes, tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    (tmp_path / "script.py").write_text(SCRIPT.replace("ADDRESS", raylets.address))
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.splitlines()[-2:] == ["7.0", "7.0"], done.stderr
