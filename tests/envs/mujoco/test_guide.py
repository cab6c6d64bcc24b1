"""The guide's example of a new robot, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fastrl.config import load_config
from fastrl.envs import EnvFactory
from fastrl.envs.mujoco import build
from fastrl.training import train

GUIDE = (Path(__file__).parents[3] / "docs" / "guide" / "mujoco.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    (xml,) = blocks("xml")
    (tmp_path / "drone.xml").write_text(xml)
    (tmp_path / "drone.py").write_text(blocks("python")[-1])
    (tmp_path / "drone.yaml").write_text(blocks("yaml")[-1])
    return tmp_path


def test_class_takes_about_twenty_lines():
    _, _, body = blocks("python")[-1].partition("class Drone")
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


@pytest.fixture
def found(folder, monkeypatch):
    """Let the example's module be imported, for one test."""
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_new_robot_is_trained_by_its_configuration(found):
    overrides = ["total_steps=1024", "sampler.kind=serial", "evaluation.enabled=false"]
    overrides += [f"run_dir={found / 'run'}", "sampler.num_env_workers=1", "algorithm.epochs=1"]
    overrides += ["sampler.rollout_length=32", "logging.tensorboard=false"]
    train(load_config(found / "drone.yaml", overrides))
    assert (found / "run" / "summary.json").exists()


def test_new_robot_comes_alone_and_in_batches(found):
    factory = EnvFactory.from_config(load_config(found / "drone.yaml").env)
    assert factory.batched(3).spec == factory.probe()
    single = factory.single()
    observation, _ = single.reset(seed=0)
    assert observation.shape == (6,)
    *_, info = single.step(single.action_space.sample())
    assert set(info) == {"near", "effort"}


def test_example_for_gymnasium_runs(capsys):
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out == "(64, 17) (64,)\n"


@pytest.mark.parametrize("text", blocks("yaml")[:-1])
def test_configurations_are_true(text):
    env = yaml.safe_load(text)["env"]
    name = env.pop("id")
    built = build(name, 2, **env.pop("kwargs", {}), **env)
    assert built.num_envs == 2
