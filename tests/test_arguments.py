"""Arguments of Python callers are accepted or rejected with one line."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

import fastrl
from fastrl import arguments, models
from fastrl.config import config_to_yaml, load_config, resolved
from fastrl.datasets import load_demonstrations
from fastrl.envs.classic_control.render import save_animation
from fastrl.errors import ArgumentError, ConfigError, FastrlError
from fastrl.learning import losses, returns
from fastrl.sampling import Deadlines, FaultPolicy, env_factory
from fastrl.sweeps import Sweep
from fastrl.training import EvaluationProtocol, evaluate, record_dataset, record_function
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.plotting import plot_runs
from fastrl.tuning import Candidate, tuned
from fastrl.tuning.space import Space
from fastrl.watch.run_index import RunIndex

SPEC = fastrl.EnvSpec("x", spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2))
TOPOLOGY = fastrl.Topology(2, 1)
GRID = torch.zeros(3, 2)
CONFIG = load_config(
    None, ["env.id=CartPole-v1", "sampler.kind=serial", "sampler.num_env_workers=1"]
)

ABSENT = load_config(None, ["env.id=NoSuchEnv-v0"])


class Unprintable:
    def __repr__(self):
        raise ValueError("no text")


ODD = [
    None,
    0,
    -1,
    1.5,
    math.nan,
    "",
    "x.yaml",
    b"x",
    "a\0b",
    [],
    {},
    (),
    {"a": 1},
    object(),
    Unprintable(),
    True,
    10**30,
    np.array([1, 2]),
    torch.zeros(2),
    int,
    lambda: 1,
]


def build_envs(num_envs):
    raise AssertionError


PLAN = fastrl.SamplingPlan(SPEC, TOPOLOGY, 8, 0, build_envs, None)


def policy_plan():
    return fastrl.SamplingPlan(
        SPEC, TOPOLOGY, 8, 0, build_envs, lambda: fastrl.build_model(SPEC, CONFIG.model)
    )


@cache
def open_sampler():
    return fastrl.SerialSampler(policy_plan())


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end():
    yield
    open_sampler().close()


def publish(parameters):
    open_sampler().publish(parameters)


def publish_one(value):
    state = dict(fastrl.build_model(SPEC, CONFIG.model).state_dict())
    publish(state | {next(iter(state)): value})


@cache
def learner():
    return fastrl.build_learner(CONFIG, SPEC)


@cache
def policy():
    return fastrl.TrainedPolicy(fastrl.build_model(SPEC, CONFIG.model), SPEC)


def closed(build):
    def call(odd):
        made = build(odd)
        if hasattr(made, "close"):
            made.close()

    return call


CALLS = {
    "save_config, a path": lambda odd: fastrl.save_config(CONFIG, odd),
    "make_plan": fastrl.make_plan,
    "make_plan, env_spec": lambda odd: fastrl.make_plan(CONFIG, env_spec=odd),
    "make_sampler": fastrl.make_sampler,
    "make_sampler, plan": closed(lambda odd: fastrl.make_sampler(CONFIG, odd)),
    "make_sampler, weights": closed(lambda odd: fastrl.make_sampler(CONFIG, policy_plan(), odd)),
    "SerialSampler": fastrl.SerialSampler,
    "SerialSampler, weights": closed(lambda odd: fastrl.SerialSampler(PLAN, odd)),
    "ProcessSampler": fastrl.ProcessSampler,
    "ProcessSampler, deadlines": closed(lambda odd: fastrl.ProcessSampler(PLAN, deadlines=odd)),
    "ProcessSampler, faults": closed(lambda odd: fastrl.ProcessSampler(PLAN, faults=odd)),
    "DeviceSampler": lambda odd: fastrl.DeviceSampler(odd, None, None),
    "DeviceSampler, env": lambda odd: fastrl.DeviceSampler(PLAN, odd, None),
    "publish": publish,
    "publish, a tensor": publish_one,
    "Topology, n": lambda odd: fastrl.Topology(odd, 1),
    "Topology, N": lambda odd: fastrl.Topology(1, odd),
    "Topology, M": lambda odd: fastrl.Topology(2, 1, odd),
    "Topology, groups": lambda odd: fastrl.Topology(2, 1, 0, odd),
    "EnvSpec, observation": lambda odd: fastrl.EnvSpec("x", odd, SPEC.action_space).observation,
    "EnvSpec, action": lambda odd: fastrl.EnvSpec("x", SPEC.observation_space, odd).action,
    "EnvFactory": lambda odd: fastrl.EnvFactory(odd).probe(),
    "EnvFactory, kwargs": lambda odd: fastrl.EnvFactory("CartPole-v1", kwargs=odd).probe(),
    "EnvFactory, wrappers": lambda odd: fastrl.EnvFactory("CartPole-v1", wrappers=odd).probe(),
    "EnvFactory, limit": lambda odd: fastrl.EnvFactory("CartPole-v1", max_episode_steps=odd),
    "EnvFactory, bounds": lambda odd: fastrl.EnvFactory("CartPole-v1", action_bounds=odd),
    "EnvFactory, randomize": lambda odd: fastrl.EnvFactory("CartPole-v1", randomize=odd).probe(),
    "EnvFactory, info": lambda odd: fastrl.EnvFactory("CartPole-v1", episode_info=odd).probe(),
    "EnvFactory.batched": lambda odd: fastrl.EnvFactory("CartPole-v1").batched(odd),
    "build_model": lambda odd: fastrl.build_model(odd, CONFIG.model),
    "build_model, config": lambda odd: fastrl.build_model(SPEC, odd),
    "build_model, bounds": lambda odd: fastrl.build_model(SPEC, CONFIG.model, odd),
    "ActorCritic": lambda odd: fastrl.ActorCritic(odd, CONFIG.model),
    "ActorCritic, config": lambda odd: fastrl.ActorCritic(SPEC, odd),
    "build_learner": lambda odd: fastrl.build_learner(odd, SPEC),
    "build_learner, env_spec": lambda odd: fastrl.build_learner(CONFIG, odd),
    # None, the default, would compile gradients: a minute on a busy machine.
    "build_learner, model": lambda odd: fastrl.build_learner(
        CONFIG, SPEC, 0 if odd is None else odd
    ),
    "Learner.update": lambda odd: learner().update(odd),
    "entropy_loss": losses.entropy_loss,
    "normalize_advantage": losses.normalize_advantage,
    "ppo_loss": lambda odd: losses.ppo_loss(torch.zeros(3), torch.zeros(3), odd, 0.2),
    "ppo_loss, log_prob": lambda odd: losses.ppo_loss(odd, torch.zeros(3), torch.zeros(3), 0.2),
    "gae": lambda odd: returns.gae(odd, GRID, GRID, GRID > 0, 0.9, 0.9),
    "gae, ended": lambda odd: returns.gae(GRID, GRID, GRID, odd, 0.9, 0.9),
    "next_values": lambda odd: returns.next_values(odd, GRID, GRID > 0, GRID > 0),
    "sums so far": lambda odd: returns.discounted_sums_so_far(GRID, GRID > 0, odd, 0.9),
    "vtrace": lambda odd: returns.vtrace(GRID, GRID, GRID, GRID, GRID > 0, odd),
    "build_engine": models.build_engine,
    "EagerEngine": models.EagerEngine,
    "RandomEngine": models.RandomEngine,
    "ActionDistribution": models.ActionDistribution,
    "act": lambda odd: policy().act(odd),
    "act, state": lambda odd: policy().act(np.zeros(4, np.float32), 0 if odd is None else odd),
    "act, mask": lambda odd: policy().act(np.zeros(4, np.float32), mask=0 if odd is None else odd),
    "TrainedPolicy": lambda odd: fastrl.TrainedPolicy(odd, SPEC),
    "TrainedPolicy, env_spec": lambda odd: fastrl.TrainedPolicy(policy().model, odd),
    "evaluate": lambda odd: evaluate(policy().model, SPEC, build_envs, odd),
    "evaluate, env_spec": lambda odd: evaluate(policy().model, odd, 0, EvaluationProtocol(1, 0)),
    "config_to_yaml": config_to_yaml,
    "resolved": resolved,
    "env_factory": env_factory,
    "initial_state": lambda odd: policy().initial_state(odd),
    "save_animation": lambda odd: save_animation(odd, Path("a.gif"), 10),
    "save_animation, a picture": lambda odd: save_animation([odd], Path("a.gif"), 10),
    "save_animation, path": lambda odd: save_animation([np.zeros((4, 4, 3), np.uint8)], odd, 10),
    "plot_runs": lambda odd: plot_runs(odd, Path("a.png")),
    "plot_runs, output": lambda odd: plot_runs(["none"], odd),
    "train": fastrl.train,
    "train, name": lambda odd: fastrl.train(ABSENT, name=odd),
    "train, console": lambda odd: fastrl.train(ABSENT, console=odd),
    "train, callbacks": lambda odd: fastrl.train(ABSENT, callbacks=odd),
    "train, ranks": lambda odd: fastrl.train(ABSENT, ranks=odd),
    "resume": fastrl.resume,
    "evaluate_run": fastrl.evaluate_run,
    "record_run": fastrl.record_run,
    "load_policy": fastrl.load_policy,
    "export_run": lambda odd: fastrl.export_run(odd, "onnx"),
    "export_run, format": lambda odd: fastrl.export_run("none", odd),
    "push_run": lambda odd: fastrl.push_run(odd, "./shared"),
    "push_run, repo": lambda odd: fastrl.push_run("none", odd),
    "pull_run": lambda odd: fastrl.pull_run(odd, "there"),
    "pull_run, directory": lambda odd: fastrl.pull_run("./none", odd),
    "register": lambda odd: fastrl.register(odd, "x", int),
    "register, name": lambda odd: fastrl.register("model", odd, int),
    "make_tensor": fastrl.envs.make_tensor,
    "make_tensor, dtype": lambda odd: fastrl.envs.make_tensor("CartPole-v1", dtype=odd),
    "make_tensor, device": lambda odd: fastrl.envs.make_tensor("CartPole-v1", device=odd),
    "record_dataset": lambda odd: record_dataset(odd, "set"),
    "record_function": lambda odd: record_function(odd, "a:b", "set"),
    "record_function, policy": lambda odd: record_function(CONFIG, odd, "set"),
    "record_function, path": lambda odd: record_function(ABSENT, "tests.outside:x", odd),
    "load_demonstrations": load_demonstrations,
    "load_demonstrations, env_spec": lambda odd: load_demonstrations(
        "none", 0 if odd is None else odd
    ),
    "load_demonstrations, fields": lambda odd: load_demonstrations("none", fields=odd),
    "checkpoint": lambda odd: CheckpointStore(Path("none")).resolve(odd),
    "tuned": tuned,
    "Sweep": Sweep,
    "RunIndex": lambda odd: RunIndex([odd]),
    "Protocol, seconds": fastrl.Protocol,
    "Protocol, repeats": lambda odd: fastrl.Protocol(1.0, odd),
    "Protocol, warm-up": lambda odd: fastrl.Protocol(1.0, 1, odd),
    "run_throughput": lambda odd: fastrl.run_throughput(odd, fastrl.Protocol()),
    "run_throughput, protocol": lambda odd: fastrl.run_throughput(CONFIG, odd),
    "make_vec": closed(lambda odd: fastrl.make_vec(odd, 1, backend="serial")),
    "make_vec, num_envs": closed(lambda odd: fastrl.make_vec("CartPole-v1", odd, backend="serial")),
    "make_vec, wrappers": closed(
        lambda odd: fastrl.make_vec(
            "CartPole-v1", 1, backend="serial", wrappers=[5 if callable(odd) else odd]
        )
    ),
    "Trainer": lambda odd: fastrl.Trainer(odd, None, 10, None),
    "SamplingPlan": lambda odd: fastrl.SamplingPlan(odd, TOPOLOGY, 8, 0, build_envs, None),
    "SamplingPlan, topology": lambda odd: fastrl.SamplingPlan(SPEC, odd, 8, 0, build_envs, None),
    "SamplingPlan, T": lambda odd: fastrl.SamplingPlan(SPEC, TOPOLOGY, odd, 0, build_envs, None),
    "SamplingPlan, seed": lambda odd: fastrl.SamplingPlan(SPEC, TOPOLOGY, 8, odd, build_envs, None),
    "SamplingPlan, envs": lambda odd: fastrl.SamplingPlan(SPEC, TOPOLOGY, 8, 0, odd, None),
    "SamplingPlan, model": lambda odd: fastrl.SamplingPlan(SPEC, TOPOLOGY, 8, 0, build_envs, odd),
    "SamplingPlan, devices": lambda odd: fastrl.SamplingPlan(
        SPEC, TOPOLOGY, 8, 0, build_envs, build_envs, odd
    ),
    "Deadlines": Deadlines,
    "Deadlines, step": lambda odd: Deadlines(step_timeout_s=odd),
    "FaultPolicy": FaultPolicy,
    "FaultPolicy, on_fault": lambda odd: FaultPolicy(1, odd),
    "Candidate": lambda odd: Candidate(odd, 4),
    "Candidate, M": lambda odd: Candidate(4, 4, odd),
    "Space": Space,
    "Space, batch": lambda odd: Space(2, batch=odd),
    "load_config": load_config,
    "load_config, overrides": lambda odd: load_config(None, odd),
    "load_config, an override": lambda odd: load_config(None, [odd]),
}


_PROBING = ("make_sampler, plan", "make_plan, env_spec")


@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments_are_taken_or_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = 0
    for odd in ODD:
        if odd is None and name in _PROBING:
            continue  # the default: probes in a process
        if isinstance(odd, Unprintable) and name.startswith("make_vec"):
            continue
        try:
            CALLS[name](odd)
        except FastrlError as error:
            told = str(error)
            assert told, odd
            assert len(told.splitlines()) == 1, told
            refused += 1
    assert refused > len(ODD) / 3


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: fastrl.make_sampler("x.yaml"),
            "make_sampler takes a Config, got 'x.yaml'; load_config reads one from",
        ),
        (lambda: publish(None), "parameters are a state dict of tensors by name, got None"),
        (lambda: Candidate(-1, 4), "envs_per_worker must be a whole number of at least 1, got -1"),
        (lambda: Space(cores=0), "cores must be a whole number of at least 1, got 0"),
        (
            lambda: fastrl.Topology(2, 1.5),
            "num_env_workers must be a whole number of at least 1, got 1.5",
        ),
    ],
)
def test_refusals_say_what_is_right(call, told):
    with pytest.raises(FastrlError) as caught:
        call()
    assert str(caught.value).startswith(told)


def test_refused_arguments_are_bad_input():
    with pytest.raises(ConfigError):
        fastrl.make_plan(None)


def test_numpys_numbers_are_taken_and_become_pythons():
    topology = fastrl.Topology(np.int64(2), np.uint8(1))
    assert (type(topology.envs_per_worker), topology.num_envs) == (int, 2)
    assert type(arguments.whole("n", np.int32(3))) is int
    assert arguments.finite_number("x", np.float32(0.5), above=0) == 0.5
    assert arguments.seconds("timeout_s", np.float32(2)) == 2
    with pytest.raises(ArgumentError, match="must be a finite number"):
        arguments.finite_number("x", np.float32(np.nan))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda: arguments.whole("n", True), "n must be a whole number of at least 1, got True"),
        (lambda: arguments.whole("n", 9, at_most=8), "n must be at most 8, got 9"),
        (
            lambda: arguments.finite_number("x", 0, above=0),
            "x must be a finite number above 0, got",
        ),
        (lambda: arguments.finite_number("x", math.inf), "x must be a finite number, got inf"),
        (
            lambda: arguments.finite_number("x", math.nan, at_least=0),
            "x must be a finite number of at least 0, got nan",
        ),
        (lambda: arguments.seconds("s", True), "s must be a number of seconds above 0, got True"),
        (
            lambda: arguments.one_of("mode", "sinc", ("sync", "async", None)),
            "mode must be 'sync' or 'async' or None, got 'sinc'; did you mean 'sync'?",
        ),
        (
            lambda: arguments.same_shapes(a=torch.zeros(2), b=torch.zeros(3)),
            "b must have the shape of a, [2]; got [3]",
        ),
    ],
)
def test_checks_raise_one_error(check, told):
    with pytest.raises(ArgumentError) as caught:
        check()
    assert str(caught.value).startswith(told)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, ValueError)
