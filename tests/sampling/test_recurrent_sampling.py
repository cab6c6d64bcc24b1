"""Recurrent networks act as they learn, in every sampler."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastrl.config import Config, EnvConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.learning import build_learner
from fastrl.learning.algorithm import Minibatch
from fastrl.models.policy import initial_state
from fastrl.sampling import ProcessSampler, SerialSampler, initial_weights, make_plan
from tests.learning.test_sequences import batch_of
from tests.sampling.test_device_sampler import device_sampler

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


@pytest.mark.parametrize("sizes", [{}, {"num_model_workers": 1, "groups": 2}], ids=str)
def test_lock_step_processes_equal_the_serial_sampler_bit_for_bit(sizes):
    plan = plan_of(config(lock_step=True, **sizes))
    weights = initial_weights(plan)
    with SerialSampler(plan, weights) as one, ProcessSampler(plan, weights) as other:
        for _ in range(4):
            found, wanted = other.collect().fields, one.collect().fields
            for name in wanted.keys() - {"policy_version", "final_observation"}:
                assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("sizes", [{}, {"num_model_workers": 1, "groups": 2}], ids=str)
@torch.no_grad()
def test_memory_and_masks_together_are_learnt_as_they_act(sizes):
    env = EnvConfig(id="MaskedTMaze-v0", kwargs={"length": 2})
    settings = config("lstm of two layers", lock_step=True, **sizes)
    settings = settings.model_copy(update={"env": env})
    plan = make_plan(settings)
    learner = build_learner(settings, plan.env_spec)
    with (
        SerialSampler(plan, learner.weights()) as one,
        ProcessSampler(plan, learner.weights()) as other,
    ):
        for _ in range(3):
            rollout, same = one.collect(), other.collect()
            for name in ("action", "log_prob", "value", "policy_state"):
                assert torch.equal(rollout.fields[name], same.fields[name]), name
            mask = rollout.observation["action_mask"]
            assert torch.equal(mask, same.observation["action_mask"])
            assert mask[:-1].gather(-1, rollout.action[..., None]).all()
            batch = batch_of(learner, rollout)
            rows = Minibatch(batch, batch.all_rows(), {})
            log_prob, _, value = rows.evaluate(learner.model)
            torch.testing.assert_close(log_prob, rows["log_prob"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(value, rows["value"], rtol=1e-5, atol=1e-5)
            assert rollout.terminated.any()
