"""Random calls of public constructors; each object is used once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

import fastrl
from fastrl.config import ModelConfig
from fastrl.envs import make_tensor
from fastrl.errors import FastrlError
from fastrl.learning import build_learner
from fastrl.sampling import SerialSampler
from fastrl.spaces import flatten
from fastrl.training import CheckpointStore
from tests.chaos.storm.chance import number, oddity, space, text

Call = tuple[str, Callable[[], Any]]

_ANY = "tests.chaos.storm.any_env:make"
_IDS = (_ANY, _ANY, "CartPole-v1", "fastrl/CartPole-v1", "fastrl/Pendulum-v1", "CartPole-v99")


def constructors(
    pick: random.Random, keys: list[str], directory: Path
) -> tuple[str, Callable[[], bool]]:
    """Call one; it succeeds, or fails with one line."""
    description, call = pick.choice(_KINDS)(pick, directory)

    def accepted() -> bool:
        try:
            call()
        except FastrlError as error:
            told = str(error.args[0])
            assert told, "says nothing"
            assert len(told.splitlines()) == 1, f"several lines: {told!r}"
            return False
        return True

    return description, accepted


def _vector(pick: random.Random, directory: Path) -> Call:
    env, kwargs = _env(pick)
    choices: dict[str, list[Any]] = {
        "num_envs": [1, 2, 3, 0, -1],
        "backend": ["auto", "serial", "serial", "native", "serail", ""],
        "num_workers": [1, 2, 0, -5],
        "autoreset": ["same_step", "next_step", "disabled", "same-step", text(pick)],
        "env_kwargs": [{}, [{}, {}], {"x": 1}, {"length": [0.5, 1.0]}, [], {"g": {"uniform": 1}}],
        "wrappers": [(), ("a:b",), ("nowhere",), (text(pick),)],
        "max_episode_steps": [None, 1, 5, 0, -3],
        "copy": [True, False],
        "output": ["numpy", "torch", "jax"],
        "timeout_s": [1.0, 30.0, 0.0, -1.0, number(pick)],
        text(pick) or "x": [1],
    }
    arguments = {name: pick.choice(choices[name]) for name in pick.sample([*choices], 3)}
    arguments |= {"num_envs": pick.choice((1, 2, 3)), **kwargs} | arguments

    def call() -> None:
        envs = fastrl.make_vec(env, **arguments)
        try:
            envs.reset(seed=pick.choice((None, 3, [1] * envs.num_envs)))
            for _ in range(3):
                envs.step(envs.action_space.sample())
        finally:
            envs.close()

    return f"make_vec({env!r}, **{arguments!r})", call


def _model(pick: random.Random, directory: Path) -> Call:
    spec = fastrl.EnvSpec("any", space(pick), space(pick))
    config = ModelConfig(
        hidden_sizes=tuple(pick.randint(1, 9) for _ in range(pick.randint(0, 3))),
        shared_body=pick.random() < 0.5,
        conv_features=pick.randint(1, 9),
        orthogonal_init=pick.random() < 0.5,
        normalize_observations=pick.random() < 0.5,
    )
    bounds: Any = pick.choice(("clip", "squash"))

    def call() -> None:
        model = fastrl.build_model(spec, config, bounds)
        space = spec.observation_space
        sample = zip(spec.observation.items(), flatten(space, space.sample()), strict=True)
        observation = {
            path: torch.from_numpy(np.asarray(value)).to(leaf.dtype).expand(3, *leaf.shape)
            for (path, leaf), value in sample
        }
        log_prob, entropy, value = model.evaluate(observation, model.mode(observation).action)
        assert log_prob.shape == entropy.shape == value.shape == (3,)

    return f"build_model({spec!r}, {config!r}, {bounds!r})", call


def _sampler(pick: random.Random, directory: Path) -> Call:
    """Sample from any spaces, in this process, and learn from it."""
    seed = pick.randrange(10**6)
    odd = pick.choice(("null", seed))
    overrides = [
        f"env.id={_ANY}",
        f"env.kwargs={{spaces_seed: {seed}, odd_seed: {odd}}}",
        f"env.action_bounds={pick.choice(('clip', 'squash'))}",
        "sampler.kind=serial",
        f"sampler.envs_per_worker={pick.randint(1, 3)}",
        "sampler.num_env_workers=2",
        f"sampler.rollout_length={pick.randint(1, 6)}",
        "sampler.debug=true",
        "model.hidden_sizes=[4]",
        f"model.normalize_observations={pick.choice(('true', 'false'))}",
        f"algorithm.name={pick.choice(('ppo', 'a2c'))}",
    ]

    def call() -> None:
        config = fastrl.load_config(None, overrides)
        factory = fastrl.EnvFactory.from_config(config.env)
        spec = factory.probe()  # here, as a process for each would take long
        plan = fastrl.SamplingPlan(
            env_spec=spec,
            topology=config.topology,
            rollout_length=config.sampler.rollout_length,
            seed=0,
            build_env=factory.batched,
            build_model=lambda: fastrl.build_model(spec, config.model, config.env.action_bounds),
        )
        learner = build_learner(config, spec)
        with SerialSampler(plan, learner.weights(), debug=True) as sampler:
            for _ in range(2):
                learner.update(sampler.collect())
                sampler.publish(learner.weights())

    return f"SerialSampler({overrides!r})", call


def _factory(pick: random.Random, directory: Path) -> Call:
    env, kwargs = _env(pick)
    arguments = {
        "kwargs": pick.choice((kwargs, {"nonsense": 1}, {text(pick): None})),
        "wrappers": pick.choice(((), ("os:getcwd",), (text(pick),), ("gymnasium:Env",))),
        "max_episode_steps": pick.choice((None, 1, 7)),
        "action_bounds": pick.choice(("clip", "squash")),
        "randomize": pick.choice(({}, {"mass": {"uniform": [1, 2]}}, {"x": text(pick)})),
        "episode_info": pick.choice(((), ("is_success",), ("a/b", text(pick)))),
    }
    number_of_envs = pick.choice((1, 2, 3))
    identifier = pick.choice((env, text(pick), f"{text(pick)}:{text(pick)}"))

    def call() -> None:
        factory = fastrl.EnvFactory(identifier, **arguments)
        factory.probe()
        factory.batched(number_of_envs).close()

    return f"EnvFactory({identifier!r}, **{arguments!r})", call


def _small_ones(pick: random.Random, directory: Path) -> Call:
    sizes = [pick.randint(-2, 9) for _ in range(4)]
    name = pick.choice((text(pick), "last", "best", "../x", "step_000000000032", "/etc"))
    path = pick.choice((directory / "nowhere", directory / "run" / "checkpoints"))
    return pick.choice(
        [
            (f"Topology{tuple(sizes)}", lambda: fastrl.Topology(*sizes)),
            (f"CheckpointStore({path}).load({name!r})", lambda: CheckpointStore(path).load(name)),
            (f"make_tensor({name!r})", lambda: make_tensor(name)),
            (f"load_config({name!r})", lambda: fastrl.load_config(name)),
        ]
    )


def _env(pick: random.Random) -> tuple[str, dict[str, Any]]:
    env = pick.choice(_IDS)
    if env != _ANY:
        return env, {}
    seed = pick.randrange(10**6)
    return env, {"spaces_seed": seed, "odd_seed": pick.choice((None, seed))}


def _odd_arguments(pick: random.Random, directory: Path) -> Call:
    """Pass an odd value in place of a fastrl object."""
    odd = oddity(pick)
    # None would be the default, with which it plays 100 episodes.
    no_default = -1 if odd is None else odd
    config, topology = fastrl.load_config(None, ["env.id=CartPole-v1"]), fastrl.Topology(2, 1)
    spec = fastrl.EnvSpec("any", spaces.Discrete(2), spaces.Discrete(2))
    name, call = pick.choice(
        [
            ("make_plan", lambda: fastrl.make_plan(odd)),
            ("make_sampler", lambda: fastrl.make_sampler(odd)),
            ("SerialSampler", lambda: fastrl.SerialSampler(odd)),
            ("ProcessSampler", lambda: fastrl.ProcessSampler(odd)),
            ("Topology", lambda: fastrl.Topology(odd, 2)),
            ("Topology M", lambda: fastrl.Topology(2, 2, odd)),
            ("SamplingPlan", lambda: fastrl.SamplingPlan(odd, topology, 4, 0, int, None)),
            ("SamplingPlan T", lambda: fastrl.SamplingPlan(spec, topology, odd, 0, int, None)),
            ("SamplingPlan model", lambda: fastrl.SamplingPlan(spec, topology, 4, 0, int, odd)),
            ("EnvSpec", lambda: fastrl.EnvSpec("x", odd, odd).observation),
            ("EnvFactory kwargs", lambda: fastrl.EnvFactory("CartPole-v1", kwargs=odd).probe()),
            ("EnvFactory wrappers", lambda: fastrl.EnvFactory("CartPole-v1", wrappers=odd).probe()),
            ("build_model", lambda: fastrl.build_model(spec, odd)),
            ("build_learner", lambda: build_learner(config, odd)),
            ("train", lambda: fastrl.train(odd)),
            ("resume", lambda: fastrl.resume(odd)),
            ("evaluate_run", lambda: fastrl.evaluate_run(directory / "run", episodes=no_default)),
            ("evaluate_run seed", lambda: fastrl.evaluate_run(directory / "run", seed=no_default)),
            ("run_throughput", lambda: fastrl.run_throughput(odd, fastrl.Protocol())),
            ("Protocol", lambda: fastrl.Protocol(odd, odd, odd)),
            ("save_config", lambda: fastrl.save_config(config, odd)),
        ]
    )
    return f"{name}({type(odd).__name__})", call


_KINDS = (_vector, _vector, _model, _sampler, _factory, _small_ones, _odd_arguments)
