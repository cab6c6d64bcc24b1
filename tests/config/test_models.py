from __future__ import annotations

import subprocess
import sys

import pydantic
import pytest

from fastrl.config import A2CConfig, Config, EnvConfig, PPOConfig, SamplerConfig, load_config
from fastrl.config.fields import Section
from fastrl.errors import ConfigError


def test_config_is_immutable(tiny_config):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        tiny_config.sampler.groups = 2


def test_sections_have_a_default_except_env():
    assert Config(env=EnvConfig(id="CartPole-v1")).algorithm == PPOConfig()
    with pytest.raises(pydantic.ValidationError, match="env"):
        Config()


def test_algorithm_is_chosen_by_name():
    config = Config.model_validate({"env": {"id": "X"}, "algorithm": {"name": "a2c"}})
    assert config.algorithm == A2CConfig()


def test_a2c_has_the_defaults_of_its_reference_implementation():
    algorithm = A2CConfig()
    assert (algorithm.learning_rate, algorithm.gae_lambda) == (7e-4, 1.0)
    assert (algorithm.optimizer, algorithm.normalize_advantage) == ("rmsprop", False)


def test_whole_float_is_an_integer_and_boolean_is_none():
    assert SamplerConfig(envs_per_worker=1e2).envs_per_worker == 100
    for wrong in (1.5, True, "4", float("inf"), float("nan")):
        with pytest.raises(pydantic.ValidationError):
            SamplerConfig(envs_per_worker=wrong)


def test_infinite_and_not_a_number_are_no_settings():
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(pydantic.ValidationError):
            PPOConfig(value_coef=wrong)


def test_topology_is_taken_from_sampler(tiny_config):
    topology = tiny_config.topology
    assert (topology.envs_per_worker, topology.num_env_workers) == (2, 2)
    assert (topology.num_model_workers, topology.groups) == (0, 1)


def sizes(monkeypatch, cores, **keys):
    monkeypatch.setattr("fastrl.config.models.usable_cores", lambda: cores)
    topology = SamplerConfig(**keys).topology()
    return topology.envs_per_worker, topology.num_env_workers


@pytest.mark.parametrize(
    ("keys", "on_2", "on_7"),
    [
        ({}, (16, 2), (8, 4)),
        ({"kind": "device"}, (16, 1), (16, 1)),
        ({"num_envs": 21}, (21, 1), (3, 7)),
        ({"num_envs": 8, "groups": 2}, (4, 2), (2, 4)),
        ({"num_envs": 24, "envs_per_worker": 3}, (3, 8), (3, 8)),
        ({"num_envs": 24, "num_env_workers": 3}, (8, 3), (8, 3)),
        ({"num_envs": 24, "kind": "device"}, (24, 1), (24, 1)),
        ({"num_env_workers": 3}, (16, 3), (16, 3)),
        ({"envs_per_worker": 5}, (5, 2), (5, 7)),
    ],
)
def test_only_envs_per_worker_lets_the_number_of_environments_follow_the_cores(
    monkeypatch, keys, on_2, on_7
):
    assert (sizes(monkeypatch, 2, **keys), sizes(monkeypatch, 7, **keys)) == (on_2, on_7)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"num_envs": 9, "envs_per_worker": 2, "num_env_workers": 4},
            r"must be divisible by sampler.envs_per_worker \(2\), got 9",
        ),
        (
            {"num_envs": 10, "envs_per_worker": 2, "num_env_workers": 4},
            r"must be sampler.envs_per_worker × sampler.num_env_workers \(2 × 4\), got 10",
        ),
        (
            {"num_envs": 10, "num_env_workers": 4},
            r"must be divisible by sampler.num_env_workers \(4\), got 10",
        ),
        (
            {"num_envs": 10, "num_env_workers": 2, "groups": 2},
            r"by sampler.num_env_workers × sampler.groups \(2 × 2\), got 10",
        ),
        (
            {"num_envs": 10_000, "envs_per_worker": 1},
            "makes 10000 env workers; at most 4096 are possible",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_one_line(keys, problem):
    with pytest.raises(pydantic.ValidationError, match=problem):
        SamplerConfig(**keys)


def test_throughput_takes_64_environments_per_worker_where_no_size_is_given():
    def measured(**keys):
        config = Config(env=EnvConfig(id="X"), sampler=SamplerConfig(**keys))
        return config.for_throughput().topology.envs_per_worker

    assert measured() == measured(num_env_workers=3) == 64
    assert measured(envs_per_worker=5) == 5
    assert measured(num_envs=6, num_env_workers=3) == 2
    assert measured(kind="device") == 16


def test_more_model_workers_than_cores_are_refused_when_env_workers_are_auto(monkeypatch):
    monkeypatch.setattr("fastrl.config.models.usable_cores", lambda: 2)
    sampler = SamplerConfig(num_env_workers="auto", num_model_workers=3)
    with pytest.raises(ConfigError, match=r"^sampler\.num_model_workers: .*at most.*\(2\), got 3$"):
        sampler.topology()


def test_devices_are_a_tuple_however_written():
    assert SamplerConfig(device="cuda:0").devices == ("cuda:0",)
    assert SamplerConfig(device=["cuda:0", "cuda:1"]).devices == ("cuda:0", "cuda:1")


def _sections(section: type[Section]):
    yield section
    for child in section.__subclasses__():
        yield from _sections(child)


# Tests that were collected before this one may have sections of their own.
OURS = [section for section in _sections(Section) if section.__module__.startswith("fastrl.")]


@pytest.mark.parametrize("section", OURS, ids=lambda section: section.__name__)
def test_every_key_is_described(section):
    missing = [name for name, field in section.model_fields.items() if not field.description]
    assert not missing


def test_reading_a_configuration_imports_no_torch():
    code = (
        "import sys; from fastrl.config import load_config; import fastrl.cli;"
        "load_config('configs/cartpole_ppo.yaml');"
        "sys.exit(sorted({'torch', 'gymnasium', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_score_to_stop_at_needs_evaluation():
    told = (
        r"^override: evaluation\.stop_at: must be null where evaluation\.enabled is false, got 9$"
    )
    with pytest.raises(ConfigError, match=told):
        load_config(None, ["env.id=A", "evaluation.enabled=false", "evaluation.stop_at=9"])


def test_arguments_of_a_model_need_a_model():
    told = r"^override: model\.kwargs: must be empty where model\.class_path is null$"
    with pytest.raises(ConfigError, match=told):
        load_config(None, ["env.id=A", "model.kwargs.x=1"])


SIZED = ["env.id=A", "sampler.num_envs=8"]


def test_machines_of_a_cluster_have_keys_of_their_own():
    config = load_config(
        None, [*SIZED, "cluster={machines: [{cores: 8, num_env_workers: 8, num_model_workers: 2}]}"]
    )
    assert list(config.sampler_on(8).topology(8).sizes.values()) == [1, 8, 2, 1]
    assert list(config.sampler_on(4).topology(4).sizes.values()) == [2, 4, 0, 1]


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ("{machines: [{cores: 2, num_env_workers: 3}]}", r"\[0\].num_envs: must be divisible"),
        ("{machines: [{cores: 2}, {cores: 2}]}", r"\[1\].cores: must be named once, got 2 again"),
        ("{machines: [{cores: 2}], mode: gradients}", r": must be \[\] with cluster.mode"),
    ],
)
def test_machines_of_a_cluster_that_cannot_be_are_one_line(cluster, problem):
    with pytest.raises(ConfigError, match=rf"cluster\.machines{problem}"):
        load_config(None, [*SIZED, f"cluster={cluster}"])
