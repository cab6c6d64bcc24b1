"""`sampler: device`: what the name stands for, and what goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrl.config import Config, EnvConfig, config_schema, load_config
from fastrl.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["process", "serial", "device"])
def test_name_in_place_of_the_section_is_its_kind(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"env: {{id: CartPole-v1}}\nsampler: {name}\n")
    assert load_config(path).sampler.kind == name
    assert Config(env=EnvConfig(id="CartPole-v1"), sampler=name).sampler.kind == name


def test_name_changes_no_other_key_whether_it_comes_first_or_last(tmp_path):
    (tmp_path / "base.yaml").write_text("env: {id: A}\nsampler: {envs_per_worker: 5}\n")
    path = tmp_path / "run.yaml"
    path.write_text("base: base.yaml\nsampler: device\n")
    for config in (
        load_config(path, ["sampler.rollout_length=7"]),
        load_config(tmp_path / "base.yaml", ["sampler.rollout_length=7", "sampler=device"]),
    ):
        sampler = config.sampler
        assert (sampler.kind, sampler.envs_per_worker, sampler.rollout_length) == ("device", 5, 7)


def test_device_is_one_worker_however_many_cores_there_are():
    topology = load_config(CONFIGS / "cartpole_device_ppo.yaml").topology
    assert (topology.num_env_workers, topology.num_model_workers) == (1, 0)


def test_editors_know_the_name():
    kinds = config_schema()["properties"]["sampler"]["anyOf"]
    assert {"type": "string"} in kinds


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler=devise", r"sampler.kind: no sampler 'devise'; did you mean 'device'\?"),
        ("sampler.num_env_workers=3", "sampler.num_env_workers: must be 1 or auto with"),
        ("sampler.groups=2", "sampler.groups: must be 1 with sampler.kind: device, got 2"),
        ("sampler.mode=async", "sampler.mode: must be sync with sampler.kind: device, got async"),
        ("sampler.device=[cpu, cuda]", "sampler.device: must be cpu with"),
        ("sampler.device=cuda", r"algorithm.device: must be sampler.device \(cuda\) with"),
    ],
)
def test_what_one_device_cannot_do_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "cartpole_device_ppo.yaml", [override])
