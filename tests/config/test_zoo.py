"""Entries of rl-baselines3-zoo as configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastrl
from fastrl.cli import main
from fastrl.config import Config, load_config
from fastrl.config.zoo import convert_entry
from fastrl.errors import ConfigError

ROOT = Path(__file__).parents[2]
PPO = """
# With what the files have: tags, expressions in text, anchors.
atari:
  env_wrapper:
    - stable_baselines3.common.atari_wrappers.AtariWrapper
  frame_stack: 4
  policy: 'CnnPolicy'
  n_envs: 8
  n_steps: 128
  n_epochs: 4
  batch_size: 256
  n_timesteps: !!float 1e7
  learning_rate: lin_2.5e-4
  clip_range: lin_0.1
  vf_coef: 0.5
  ent_coef: 0.01

CartPole-v1:
  n_envs: 8
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  n_steps: 32
  batch_size: 256
  gae_lambda: 0.8
  gamma: 0.98
  n_epochs: 20
  ent_coef: 0.0
  learning_rate: lin_0.001
  clip_range: lin_0.2

MountainCarContinuous-v0:
  normalize: true
  n_envs: 1
  n_timesteps: !!float 20000
  policy: 'MlpPolicy'
  batch_size: 256
  n_steps: 8
  gamma: 0.9999
  learning_rate: !!float 7.77e-05
  ent_coef: 0.00429
  clip_range: 0.1
  n_epochs: 10
  gae_lambda: 0.9
  max_grad_norm: 5
  vf_coef: 0.19
  use_sde: True
  policy_kwargs: "dict(log_std_init=-3.29, ortho_init=False)"

BipedalWalker-v3: &walker
  normalize: "{'norm_obs': True, 'norm_reward': False, 'clip_obs': 5.0}"
  n_envs: 16
  n_timesteps: !!float 5e6
  policy: 'MlpPolicy'
  policy_kwargs: "dict(activation_fn=nn.ReLU,
                       net_arch=[dict(pi=[256, 128], vf=[256, 256])],
                       optimizer_kwargs=dict(weight_decay=0.1),
                       features_extractor_class=Own)"
  env_wrapper: {gymnasium.wrappers.RescaleAction: {min_action: -1.0, max_action: 1.0}}
  frame_stack: 2
  env_kwargs: {hardcore: false}
  sde_sample_freq: 4
  clip_range_vf: 0.2
  target_kl: 0.03
  monitor_kwargs: {info_keywords: [fuel]}

BipedalWalkerHardcore-v3:
  <<: *walker
  n_timesteps: !!float 10e7
"""
A2C = """
CartPole-v1:
  n_envs: 8
  n_timesteps: !!float 5e5
  policy: 'MlpPolicy'
  ent_coef: 0.0
  use_rms_prop: False
"""
LSTM = """
CartPoleNoVel-v1:
  n_envs: 8
  n_timesteps: !!float 1e5
  policy: 'MlpLstmPolicy'
  normalize: true
  n_steps: 32
  batch_size: 256
  policy_kwargs: "dict(ortho_init=False, activation_fn=nn.ReLU, lstm_hidden_size=64,
                       enable_critic_lstm=True, net_arch=dict(pi=[64], vf=[64]))"
"""
# What the two files must agree in: all that is learnt from.
LEARNT = ("total_steps", "env", "sampler", "model", "algorithm")


@pytest.fixture
def zoo(tmp_path):
    for name, text in (("ppo", PPO), ("a2c", A2C), ("ppo_lstm", LSTM)):
        (tmp_path / f"{name}.yml").write_text(text)
    return tmp_path


def config_of(found) -> Config:
    return load_config(None, [f"{key}={json.dumps(value)}" for key, value in found.tree.items()])


def learnt(config: Config):
    tree = {section: getattr(config, section) for section in LEARNT}
    algorithm = tree["algorithm"].model_copy(update={"optimizer_eps": 0.1})
    # Without images, auto is false.
    return {**tree, "algorithm": algorithm,
            "model": config.model.model_copy(update={"shared_body": "auto"})}  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("CartPole-v1", "cartpole_ppo"),
        ("MountainCarContinuous-v0", "mountaincar_continuous_ppo"),
    ],
)
def test_entries_become_the_configurations_that_were_written_by_hand(zoo, entry, file):
    found = config_of(convert_entry(zoo / "ppo.yml", entry))
    assert learnt(found) == learnt(load_config(ROOT / "configs" / f"{file}.yaml"))


def test_atari_is_the_configuration_that_was_written_by_hand(zoo):
    found = config_of(convert_entry(zoo / "ppo.yml", "atari", env="ALE/Breakout-v5"))
    written = load_config(ROOT / "configs" / "breakout_ppo.yaml")
    assert learnt(found) == learnt(written)
    assert found.evaluation.env_kwargs == written.evaluation.env_kwargs
    with pytest.raises(ConfigError, match="is for all games: choose one, such as --env"):
        convert_entry(zoo / "ppo.yml", "atari")


def test_what_has_no_counterpart_is_named_in_one_line_each(zoo):
    found = convert_entry(zoo / "ppo.yml", "MountainCarContinuous-v0")
    assert found.remarks == [
        "batch_size: 256 is more than a rollout: 8, which is all of it",
        "use_sde: True has no counterpart: noise is drawn anew in each step",
    ]
    found = convert_entry(zoo / "ppo.yml", "BipedalWalkerHardcore-v3")
    assert found.remarks == [
        "policy_kwargs.features_extractor_class: 'Own' has no counterpart",
        "normalize.clip_obs: 5.0 has no counterpart",
        "monitor_kwargs: {'info_keywords': ['fuel']} has no counterpart",
    ]
    config = config_of(found)
    assert (config.total_steps, config.sampler.rollout_length) == (100_000_000, 2048)
    model, algorithm = config.model, config.algorithm
    assert (model.hidden_sizes, model.critic_hidden_sizes) == ((256, 128), (256, 256))
    assert (model.activation, model.normalize_observations) == ("relu", True)
    assert (algorithm.normalize_rewards, algorithm.weight_decay) == (False, 0.1)
    assert (algorithm.clip_value_range, algorithm.target_kl) == (0.2, 0.03)
    assert config.env.kwargs == {"hardcore": False}
    assert config.env.wrapper_paths == (
        "gymnasium.wrappers:RescaleAction", "gymnasium.wrappers:FrameStackObservation",
    )  # fmt: skip


def test_memory_and_a2c(zoo):
    found = convert_entry(zoo / "ppo_lstm.yml")
    (remark,) = found.remarks
    assert remark.startswith("policy_kwargs.net_arch: ")
    model = config_of(found).model
    assert (model.recurrent, model.recurrent_size, model.hidden_sizes) == ("lstm", 64, (64,))
    config = config_of(convert_entry(zoo / "a2c.yml", "CartPole-v1"))
    assert (config.algorithm.name, config.algorithm.optimizer) == ("a2c", "adam")
    assert config.sampler.rollout_length == 5
    masked = convert_entry(zoo / "ppo.yml", "CartPole-v1", algorithm="ppo_mask")
    assert config_of(masked) == config_of(convert_entry(zoo / "ppo.yml", "CartPole-v1"))


def test_expressions_are_read_and_never_run(tmp_path):
    for number, text in enumerate(
        ["__import__('os').abort()", "dict(net_arch=[exit()])", "dict(**{})", "[" * 90, "1 +"]
    ):
        file = tmp_path / "ppo.yml"
        entry = {"n_timesteps": 1e5, "policy_kwargs": text}
        file.write_text(json.dumps({"CartPole-v1": entry}))
        (remark,) = convert_entry(file).remarks
        assert remark.startswith("policy_kwargs: "), number


@pytest.mark.parametrize(
    ("key", "value", "remark"),
    [
        ("n_timesteps", ".inf", "n_timesteps: inf is not a finite number"),
        ("env_wrapper", "5", "env_wrapper: 5 has no counterpart"),
        ("env_wrapper", "[a.b: [1]]", "env_wrapper: {'a.b': [1]} has no counterpart"),
        ("policy_kwargs", '"{[1]: 2}"', "policy_kwargs: '{[1]: 2}' has no counterpart"),
        ("policy_kwargs", "\"dict(net_arch=b'x')\"", "policy_kwargs: "),
    ],
)
def test_values_without_a_meaning_are_remarks(tmp_path, key, value, remark):
    file = tmp_path / "ppo.yml"
    file.write_text(f"CartPole-v1: {{{key}: {value}}}")
    remarks = convert_entry(file).remarks
    assert any(each.startswith(remark) for each in remarks)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["none.yml"], "none.yml: no such file"),
        (["ppo.yml"], "name an entry: atari, CartPole-v1"),
        (["ppo.yml", "CartPole-v0"], "no entry 'CartPole-v0'; did you mean 'CartPole-v1'?"),
        (["ppo.yml", "CartPole-v1", "--algorithm", "dqn"], "--algorithm must be 'ppo' or"),
        (["flat.yml"], "'flat.yml' does not have the name of an algorithm; add --algorithm with"),
        (["broken.yml", "--algorithm", "ppo"], "broken.yml:1: "),
        (["tagged.yml", "--algorithm", "ppo"], "could not determine a constructor"),
        (["list.yml", "--algorithm", "ppo"], "has no entries"),
        (["wrong.yml", "--algorithm", "ppo"], "algorithm.gamma"),
        (["binary.yml", "--algorithm", "ppo"], "entry 'A-v1': seed must be a number, a text, or"),
        (["flat.yml", "--algorithm", "ppo"], "entry 'a' is not a mapping"),
        (["ppo.yml", "CartPole-v1", "-o", "."], "--output: '.' is a directory"),
    ],
)
def test_bad_input_is_one_line(zoo, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(zoo)
    contents = {"broken": "a: [", "tagged": "a: !!python/name:os.abort ''", "list": "[1]"}
    contents |= {
        "wrong": "A-v1: {gamma: much}",
        "flat": "a: 1",
        "binary": "A-v1: {seed: !!binary aGk=}",
    }
    for name, text in contents.items():
        (zoo / f"{name}.yml").write_text(text)
    assert main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert len([line for line in err.splitlines() if line.startswith("fastrl: ")]) == 1


def test_converted_entry_trains(zoo, monkeypatch, capsys):
    monkeypatch.chdir(zoo)
    assert main(["convert", "ppo.yml", "CartPole-v1", "-o", "cartpole.yaml"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["convert", "ppo.yml", "CartPole-v1"]) == 0
    assert capsys.readouterr().out == Path("cartpole.yaml").read_text()
    keys = ["total_steps=768", "sampler.kind=serial", "evaluation.enabled=false", "run_dir=run"]
    run = fastrl.train(load_config("cartpole.yaml", keys))
    assert run.outcome.steps == 768
