"""Recurrent networks act as they learn, in every sampler."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import Config, EnvConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.learning import build_learner
from fastrl.learning.algorithm import Minibatch
from fastrl.models.policy import build_model, initial_state
from fastrl.sampling import (
    DeviceSampler,
    ProcessSampler,
    SerialSampler,
    initial_weights,
    make_plan,
)
from fastrl.shared.rollouts import Rollout, rollout_fields
from fastrl.shared.table import Table
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner
from tests.learning.synthetic import CONTINUOUS, DISCRETE, NESTED, NO_EPISODES
from tests.learning.test_sequences import batch_of, learner_of
from tests.sampling.test_device_sampler import device_sampler
from tests.sampling.test_masks import MaskedTensors

LENGTH, SEQUENCE = 12, 4
SHAPES = {
    "gru": {"recurrent": "gru"},
    "lstm of two layers": {"recurrent": "lstm", "recurrent_layers": 2},
    "gru, two bodies": {"recurrent": "gru", "shared_body": False},
}


def config(shape="gru", kind="process", **sampler):
    sizes = {"envs_per_worker": 4, "num_env_workers": 1 if kind == "device" else 2}
    return Config(
        env=EnvConfig(id="CartPole-v1", max_episode_steps=9),
        sampler=SamplerConfig(kind=kind, rollout_length=LENGTH, **sizes | sampler),
        model=ModelConfig(hidden_sizes=(8,), recurrent_size=6, **SHAPES[shape]),
        algorithm=PPOConfig(minibatch_size=16, sequence_length=SEQUENCE),
    )


def plan_of(settings):
    return dataclasses.replace(make_plan(settings), wanted_fields=("final_observation",))


def serial(settings):
    plan = plan_of(settings)
    return SerialSampler(plan, initial_weights(plan), debug=True)


def on_device(settings):
    return device_sampler(settings, wanted_fields=("final_observation",))


@pytest.mark.parametrize(
    ("build", "kind"), [(serial, "process"), (on_device, "device")], ids=["table", "device"]
)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_learning_repeats_what_acting_computed(shape, build, kind):
    settings = config(shape, kind)
    plan = plan_of(settings)
    model = plan.build_model()
    model.load_state_dict(initial_weights(plan))
    begin = initial_state(model, plan.topology.num_envs)
    with build(settings) as sampler:
        for _ in range(3):
            rollout = sampler.collect()
            ended = rollout.terminated | rollout.truncated
            keep = torch.cat([torch.ones_like(ended[:1]), ~ended])
            for k in range(LENGTH // SEQUENCE):
                steps = slice(k * SEQUENCE, (k + 1) * SEQUENCE)
                log_prob, _, value = model.evaluate(
                    {"": rollout.observation[steps]},
                    {"": rollout.action[steps]},
                    rollout.policy_state[k],
                    keep[steps],
                )
                torch.testing.assert_close(log_prob, rollout.log_prob[steps])
                torch.testing.assert_close(value, rollout.value[steps])
            state = rollout.policy_state[0]
            for t in range(LENGTH):
                seen = {"": rollout.observation[t : t + 1]}
                state = model.state_after(seen, state, keep[t : t + 1])
                left = model.value({"": rollout.final_observation[t]}, state)
                left = torch.where(rollout.truncated[t], left, 0)
                torch.testing.assert_close(rollout.final_value[t], left)
            state = torch.where(keep[-1:].T, state, begin)
            torch.testing.assert_close(rollout.policy_state[-1], state)
            last = model.value({"": rollout.observation[-1]}, rollout.policy_state[-1])
            torch.testing.assert_close(rollout.value[-1], last)
            assert rollout.truncated.any()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"groups": 2, "engine": "eager", "envs_per_worker": 6},
        {"num_model_workers": 1, "groups": 2},
    ],
    ids=str,
)
def test_lock_step_processes_equal_the_serial_sampler_bit_for_bit(sizes):
    plan = plan_of(config(lock_step=True, **sizes))
    weights = initial_weights(plan)
    with SerialSampler(plan, weights) as one, ProcessSampler(plan, weights) as other:
        for _ in range(4):
            found, wanted = other.collect().fields, one.collect().fields
            for name in wanted.keys() - {"policy_version", "final_observation"}:
                assert torch.equal(found[name], wanted[name]), name


@torch.no_grad()
def assert_learnt_as_acted(learner, rollout, size=None):
    """Check that learning begins with the log-probs and values of acting."""
    batch = batch_of(learner, rollout)
    for index in batch.shuffled(size or len(batch), torch.Generator().manual_seed(0)):
        rows = Minibatch(batch, index, {})
        log_prob, _, value = rows.evaluate(learner.model)
        torch.testing.assert_close(log_prob, rows["log_prob"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, rows["value"], rtol=1e-5, atol=1e-5)


MASKED = EnvSpec(
    "masked",
    spaces.Dict({"x": spaces.Box(-5, 5, (3,)), "action_mask": spaces.MultiBinary(6)}),
    spaces.Dict({"turn": spaces.Box(-1, 1, (1,)), "move": spaces.MultiDiscrete([4, 2])}),
)


def fill(table, index, random, ends, restarts):
    """Write what env workers write in a rollout, at random."""
    bank, shape = table.banks[index % 2], (table.rollout_length, table.num_slots)
    for leaves in (bank.observation, bank.final_observation):
        for leaf in leaves.values():
            if leaf.is_floating_point():
                leaf.copy_(torch.randn(leaf.shape, generator=random))
            else:
                leaf.copy_(torch.randint(0, 4 if leaf.dtype == torch.int64 else 2, leaf.shape,
                                         generator=random))  # fmt: skip
            if leaf.dtype == torch.bool:
                leaf[..., [0, 4]] = True
    end = torch.rand(shape, generator=random)
    bank.terminated.copy_(end < ends / 2)
    bank.truncated.copy_((end >= ends / 2) & (end < ends))
    bank.reward.copy_(torch.randn(shape, generator=random))
    begins = torch.rand(shape[1], generator=random) < (restarts if index else 1)
    table.begins[index % 2] = begins.numpy()
    return bank, begins


@given(
    kind=st.sampled_from(["gru", "lstm"]),
    spec=st.sampled_from([DISCRETE, CONTINUOUS, NESTED, MASKED]),
    length=st.integers(1, 5),
    segments=st.integers(1, 4),
    slots=st.integers(1, 5),
    ends=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    restarts=st.sampled_from([0.0, 0.4, 1.0]),
    engine=st.sampled_from(["eager", "auto"]),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_learning_follows_ends_and_restarts_as_acting_does(
    kind, spec, length, segments, slots, ends, restarts, engine, seed
):
    """Also where an environment is replaced between two rollouts, which no flag of a step tells."""
    learner, steps = learner_of(PPOConfig(), spec, kind, seed), length * segments
    model, random = learner.model, torch.Generator().manual_seed(seed)
    plan = SamplingPlan(
        *(spec, Topology(slots, 1), steps, seed, lambda num_envs: None, lambda: model),
        engine=engine,
        wanted_fields=("final_observation",),
        sequence_length=length,
    )
    table = Table(plan.schema, steps, slots)
    runner, cut = PolicyRunner(plan, table, None, 0), seed % slots
    initial = carried = initial_state(model, slots)
    for number in range(3):
        bank, begins = fill(table, number, random, ends, restarts)
        runner.begin(number)
        for t in range(steps + 1):
            groups = [part for part in ((0, cut), (cut, slots)) if part[0] < part[1]]
            for group in groups[:: 1 if t % 2 else -1]:
                runner.serve([PolicyRequest(number % 2, t, *group)])
        fields = rollout_fields(plan.schema, bank)
        assert_learnt_as_acted(
            learner, Rollout(fields, episodes=NO_EPISODES, index=number, restarted=begins), length
        )
        state = torch.where(begins[:, None], initial, carried)
        for t in range(steps + 1):
            if t:
                ended = bank.terminated[t - 1] | bank.truncated[t - 1]
                final = {path: leaf[t - 1] for path, leaf in bank.final_observation.items()}
                left = model.value(spec.split_mask(final)[0], state)
                left = torch.where(bank.truncated[t - 1], left, 0)
                torch.testing.assert_close(bank.final_value[t - 1], left, rtol=1e-5, atol=1e-5)
                state = torch.where(ended[:, None], initial, state)
            if t % length == 0:
                stored = bank.policy_state[t // length]
                torch.testing.assert_close(stored, state, rtol=1e-5, atol=1e-5)
            seen = {path: leaf[t : t + 1] for path, leaf in bank.observation.items()}
            kept = torch.ones(1, slots, dtype=torch.bool)
            before, state = state, model.state_after(spec.split_mask(seen)[0], state, kept)
        carried = before


@torch.no_grad()
def test_memory_and_masks_on_a_device_are_learnt_as_they_act():
    settings, env = config("lstm of two layers", "device"), MaskedTensors()
    learner = build_learner(settings, env.spec)
    plan = SamplingPlan(
        *(env.spec, Topology(4, 1), LENGTH, 0, lambda num_envs: None),
        lambda: build_model(env.spec, settings.model),
        sequence_length=SEQUENCE,
    )
    with DeviceSampler(plan, env, env.default_params(), learner.weights()) as sampler:
        for _ in range(3):
            rollout = sampler.collect()
            assert (rollout.reward == 1).all()  # of valid actions
            assert_learnt_as_acted(learner, rollout)
            assert rollout.truncated.any()


@pytest.mark.parametrize(
    ("sizes", "asynchronous"),
    [({}, False), ({}, True), ({"num_model_workers": 1, "groups": 2}, False)],
    ids=str,
)
@torch.no_grad()
def test_memory_and_masks_together_are_learnt_as_they_act(sizes, asynchronous):
    env = EnvConfig(id="MaskedTMaze-v0", kwargs={"length": 2})
    settings = config("lstm of two layers", lock_step=True, **sizes)
    settings = settings.model_copy(update={"env": env})
    plan = make_plan(settings)
    learner = build_learner(settings, plan.env_spec)
    with (
        SerialSampler(plan, learner.weights()) as one,
        ProcessSampler(plan, learner.weights(), asynchronous=asynchronous) as other,
    ):
        for _ in range(3):
            rollout, same = one.collect(), other.collect()
            for name in ("action", "log_prob", "value", "policy_state"):
                assert torch.equal(rollout.fields[name], same.fields[name]), name
            mask = rollout.observation["action_mask"]
            assert torch.equal(mask, same.observation["action_mask"])
            assert mask[:-1].gather(-1, rollout.action[..., None]).all()
            assert_learnt_as_acted(learner, rollout)
            assert rollout.terminated.any()
