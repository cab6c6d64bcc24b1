from __future__ import annotations

import pytest
from pydantic import Field

from fastrl import registry
from fastrl.config import LearnerConfig, load_config
from fastrl.config.fields import Fraction, Section, Text
from fastrl.errors import ConfigError

ENV = "env.id=CartPole-v1"


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [ENV, *overrides])
    return str(caught.value).removeprefix("override: ")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sampler.num_env_worker", "sampler.num_env_workers"),
        ("sampler.rollout_lenght", "sampler.rollout_length"),
        ("num_env_workers", "sampler.num_env_workers"),
        ("sampler.learning_rate", "algorithm.learning_rate"),
        ("model.gamma", "algorithm.gamma"),
        ("samplr.groups", "sampler"),
        ("sampler.total_steps", "total_steps"),
        ("algorithm.n_steps", "sampler.rollout_length"),
        ("lr", "algorithm.learning_rate"),
        ("algorithm.batch_size", "algorithm.minibatch_size"),
        ("sampler.seed", "seed or evaluation.seed"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(wrong, right):
    assert (
        refusal(f"{wrong}=1") == f"{wrong.split('.groups')[0]}: unknown key; did you mean {right}?"
    )


def test_unknown_key_like_no_other_lists_the_known_ones():
    told = refusal("logging.zzzz=1")
    assert told.startswith("logging.zzzz: unknown key; known are tensorboard, wandb, every_s")


def test_key_of_another_algorithm_says_whose_it_is():
    assert refusal("algorithm.name=a2c", "algorithm.clip_range=0.1") == (
        "algorithm.clip_range: unknown key; it belongs to algorithm.name: ppo"
    )


def test_unknown_key_is_told_before_what_may_follow_from_it():
    assert refusal("evaluation.enabled=3", "sampler.foo=1").startswith("sampler.foo: unknown key")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.mode=fast", 'sampler.mode: must be "sync" or "async"; got "fast"'),
        ("sampler.debug=1", "sampler.debug: must be true or false; got 1"),
        (
            "algorithm.gamma=2",
            "algorithm.gamma: must be a number of at least 0 and at most 1; got 2",
        ),
        (
            "algorithm.name=dqn",
            "algorithm.name: no algorithm 'dqn'; there are a2c, airl, appo, bc, dagger, gail, "
            "impala, ppo",
        ),
        (
            "sampler.num_env_workers=0",
            "sampler.num_env_workers: must be an integer of at least 1 and at most 4096 "
            'or "auto"; got 0',
        ),
        (
            "logging.every_s=.nan",
            "logging.every_s: must be a number above 0 and at most 1000000000; got NaN",
        ),
        (
            "total_steps=0",
            "total_steps: must be an integer of at least 1 and at most 4611686018427387904; got 0",
        ),
        # Names of that many workers alone would fill the memory.
        (
            "sampler.groups=2e9",
            "sampler.groups: must be an integer of at least 1 and at most 4096; got 2000000000.0",
        ),
        ("env.kwargs=[1]", "env.kwargs: must be a mapping; got [1]"),
        ("callbacks=[{path: nope}]", "callbacks.0.path: no callback 'nope'"),
        (
            "model.class_path=a.b",
            'model.class_path: must be text such as "package.module:name" or "registered-name" or '
            'null; got "a.b"',
        ),
        (
            "env.wrappers=[ab]",
            'env.wrappers.0: must be text such as "package.module:name" or a mapping with keys '
            'among path, kwargs; got "ab"',
        ),
        (
            "env.wrappers=[a:b, {kwargs: {x: 1}}]",
            'env.wrappers.1.path: missing; must be text such as "package.module:name"',
        ),
        (
            "env.wrappers=[{path: 'a:b', kwarg: {x: 1}}]",
            "env.wrappers.0.kwarg: unknown key; did you mean env.wrappers.0.kwargs?",
        ),
        ("env.id=", "env.id: must be text of 1 to 500 characters; got null"),
        (
            "model.conv_layers=[[32, 8]]",
            "model.conv_layers: must be a list that is not empty, each a list of 3, each an "
            "integer of at least 1 and at most 2147483647 or null; got [[32, 8]]",
        ),
        (
            "checkpoint=often",
            "checkpoint: must be a mapping with keys among every_steps, every_s, keep_last, "
            'keep_best, environments; got "often"',
        ),
        (
            "algorithm=ppo2",
            "algorithm: must be a mapping with keys among name, learning_rate, "
            "learning_rate_schedule, learning_rate_warmup, gamma, max_grad_norm, optimizer, "
            'optimizer_eps, …; got "ppo2"; did you mean algorithm.name?',
        ),
        (
            "evaluation=false",
            "evaluation: must be a mapping with keys among enabled, every_steps, episodes, "
            "final_episodes, deterministic, seed, env_kwargs, max_steps, …; got false; did you "
            "mean evaluation.enabled?",
        ),
    ],
)
def test_wrong_value_names_key_value_and_what_is_allowed(override, message):
    assert refusal(override) == message


class Noise(Section):
    sigma: Fraction = Field(default=0.1, description="Its deviation.")


class NestedConfig(LearnerConfig):
    name: Text = Field(default="nested", description="An algorithm.")
    noise: Noise | None = Field(default=None, description="A section in a section.")
    layers: tuple[Noise, ...] = Field(default=(), description="Several.")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("noise: {sigmaa: 1}", "noise.sigmaa: unknown key; did you mean algorithm.noise.sigma?"),
        ("noise: {x: 1}", "noise.x: unknown key; known are sigma"),
        (
            "layers: [{}, {sigma: 2}]",
            "layers.1.sigma: must be a number of at least 0 and at most 1; got 2",
        ),
        ("noise: 3", "noise: must be a mapping with keys among sigma or null; got 3"),
    ],
)
def test_keys_of_sections_in_the_section_of_a_plugin_are_explained_as_well(keys, told, monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register("algorithm", "nested", "tests.config:Nested", NestedConfig)
    assert refusal(f"algorithm={{name: nested, {keys}}}") == f"algorithm.{told}"


def test_the_number_of_environments_is_no_keyword_of_a_family():
    with pytest.raises(ConfigError, match=r"env\.kwargs: num_envs must be left out"):
        load_config(None, ["env.id=fastrl/CartPole-v1", "env.kwargs.num_envs=3"])
    with pytest.raises(ConfigError, match=r"evaluation\.env_kwargs: num_envs must be left out"):
        load_config(None, ["env.id=fastrl/CartPole-v1", "evaluation.env_kwargs.num_envs=3"])


def test_conflict_of_two_keys_is_told_of_the_one_to_change():
    assert refusal("sampler.envs_per_worker=10", "sampler.groups=4") == (
        "sampler.envs_per_worker: must be divisible by sampler.groups (4), got 10"
    )
    assert refusal("sampler.num_env_workers=2", "sampler.num_model_workers=3") == (
        "sampler.num_model_workers: must be at most sampler.num_env_workers (2), got 3"
    )


ADAPTIVE = ("algorithm.learning_rate_schedule=kl_adaptive", "algorithm.target_kl=0.01")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ADAPTIVE[:1],
            "algorithm.target_kl: must be a number with algorithm.learning_rate_schedule: "
            "kl_adaptive, got null",
        ),
        (
            (*ADAPTIVE, "algorithm.learning_rate=0.1"),
            "algorithm.learning_rate: must be within algorithm.learning_rate_bounds (1e-05 to "
            "0.01) with algorithm.learning_rate_schedule: kl_adaptive, got 0.1",
        ),
        (
            (*ADAPTIVE, "algorithm.learning_rate_warmup=0.1"),
            "algorithm.learning_rate_warmup: must be 0 with algorithm.learning_rate_schedule: "
            "kl_adaptive, got 0.1",
        ),
        (
            ("algorithm.sequence_length=48",),
            "algorithm.sequence_length: must divide sampler.rollout_length (128), got 48",
        ),
        (
            ("model.recurrent=gru", "algorithm.minibatch_size=50"),
            "algorithm.minibatch_size: must have a larger divisor in common with "
            "sampler.rollout_length (128), got 50: minibatches would hold sequences of 2",
        ),
        (
            ("model.recurrent=gru", "algorithm.sequence_length=64", "algorithm.minibatch_size=96"),
            "algorithm.minibatch_size: must be a multiple of algorithm.sequence_length (64), "
            "got 96",
        ),
        (
            ("model.recurrent=rnn",),
            'model.recurrent: must be "gru" or "lstm" or null; got "rnn"',
        ),
        (
            ("algorithm.learning_rate_bounds=[1e-2, 1e-3]",),
            "algorithm.learning_rate_bounds: must be in order, got [0.01, 0.001]",
        ),
        (
            ("algorithm.name=appo", "algorithm.c_clip=2"),
            "algorithm.c_clip: must be at most algorithm.rho_clip (1), got 2",
        ),
        (
            ("algorithm.name=a2c", *ADAPTIVE[:1]),
            'algorithm.learning_rate_schedule: must be "constant" or "linear" or "cosine"; got '
            '"kl_adaptive"',
        ),
        (
            ("algorithm.learning_rate_warmup=1e5", "total_steps=1e5"),
            "algorithm.learning_rate_warmup: must be less than total_steps (100000), got 100000",
        ),
        (
            ("algorithm.optimizer=rmsprop", "algorithm.adam_betas=[0.9, 0.9]"),
            "algorithm.adam_betas: must be left out with algorithm.optimizer: rmsprop",
        ),
        (
            ("algorithm.adam_betas=[0.9, 1]",),
            "algorithm.adam_betas: must be a list of 2, each a number of at least 0 and below 1; "
            "got [0.9, 1]",
        ),
        (
            ("model.shared_body=true", "model.critic_hidden_sizes=[64]"),
            "model.critic_hidden_sizes: must be null where model.shared_body is true",
        ),
        (
            ("model.log_std_bounds=[1, -1]",),
            "model.log_std_bounds: must be in order, got [1.0, -1.0]",
        ),
        (
            ("model.log_std_bounds=[-3, -1]",),
            "model.log_std_init: must be between model.log_std_bounds (-3 to -1), got 0",
        ),
    ],
)
def test_learning_keys_that_contradict_each_other_are_told(overrides, told):
    # A key that was left out is the configuration's.
    assert refusal(*overrides).removeprefix("configuration: ") == told


def test_missing_environment_is_named():
    with pytest.raises(ConfigError, match=r"^configuration: env: missing; give at least env\.id$"):
        load_config(None)
    with pytest.raises(ConfigError, match=r"^configuration: env\.id: missing; must be text"):
        load_config(None, ["env.kwargs.x=1"])


def test_long_value_is_cut():
    assert len(refusal(f"sampler.mode={'x' * 5000}")) < 150


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sampler.envs", "sampler.num_envs or sampler.envs_per_worker or sampler.spare_envs"),
        ("sampler.workers", "sampler.num_env_workers or sampler.num_model_workers"),
        ("model.layers", "model.conv_layers or model.recurrent_layers"),
    ],
)
def test_a_word_of_a_key_suggests_the_keys_of_its_section(key, meant):
    assert refusal(f"{key}=3") == f"{key}: unknown key; did you mean {meant}?"


def test_a_section_that_is_left_out_is_named():
    told = refusal("algorithm.name=bc").removeprefix("configuration: ")
    assert told.startswith("dataset: must name demonstrations with algorithm.name: bc")
