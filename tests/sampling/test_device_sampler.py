"""Rollouts of a tensor environment that never leave their device."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import psutil
import pytest
import torch

from fastrl.config import A2CConfig, Config, EnvConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.envs.classic_control.control_batch import ClassicControlBatch
from fastrl.envs.tensor import make_tensor
from fastrl.envs.tensor.tensor_by_id import configured
from fastrl.errors import ConfigError, EnvError, FastrlError
from fastrl.learning import build_learner
from fastrl.models.inference import engines
from fastrl.sampling import DeviceSampler, Sampler, initial_weights, make_plan, make_sampler
from fastrl.spec import Topology
from tests.sampling.remembering import Steps

N, LENGTH = 6, 40
RANDOMIZED = {
    "id": "fastrl/Pendulum-v1",
    "kwargs": {"expose_params": True, "dt": 0.04},
    "randomize": {"mass": {"uniform": [0.5, 2]}},
    "max_episode_steps": 30,
}


def config(algorithm=None, seed=3, **env):
    return Config(
        seed=seed,
        env=EnvConfig(**(env or {"id": "CartPole-v1"})),
        sampler=SamplerConfig(kind="device", envs_per_worker=N, rollout_length=LENGTH),
        model=ModelConfig(hidden_sizes=(8,)),
        algorithm=PPOConfig(minibatch_size=64, epochs=2, **(algorithm or {})),
    )


def on_gpu(settings):
    return settings.model_copy(
        update={
            section: getattr(settings, section).model_copy(update={"device": "cuda"})
            for section in ("sampler", "algorithm")
        }
    )


def device_sampler(settings, **changes):
    """The tensor program on the CPU, where `make_sampler` would take compiled loops."""
    plan = dataclasses.replace(make_plan(settings), **changes)
    env, params = configured(settings.env, plan.device(0))
    squash = settings.env.action_bounds == "squash"
    return DeviceSampler(plan, env, params, initial_weights(plan), squash=squash)


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [tensor for part in parts for tensor in tensors(part)]


def numbers(rollout):
    return [tensor for each in vars(rollout).values() for tensor in tensors_of(each)]


def tensors_of(value):
    return tensors(value) if isinstance(value, torch.Tensor | dict) else []


def test_rollouts_follow_each_other_and_their_numbers_belong_together():
    settings = config()
    env, params = make_tensor("CartPole-v1")
    with device_sampler(settings) as sampler:
        assert isinstance(sampler, Sampler)
        model = build_learner(settings, sampler.env_spec).model
        sampler.publish(model.state_dict())
        first, second = sampler.collect(), sampler.collect()
        assert (first.index, second.index) == (0, 1)
        assert first.restarted.all()
        assert not second.restarted.any()
    assert torch.equal(second.observation[0], first.observation[-1])
    for rollout in (first, second):
        ended = rollout.terminated | rollout.truncated
        state = env.state_type(*rollout.observation[:-1].unbind(-1), torch.zeros(LENGTH, N).int())
        reached, reward, terminated = env.transition(state, rollout.action, params)
        assert torch.equal(terminated, rollout.terminated)
        assert torch.equal(reward, rollout.reward)
        torch.testing.assert_close(env.observe(reached)[~ended], rollout.observation[1:][~ended])
        log_prob, _, value = model.evaluate({"": rollout.observation[:-1]}, {"": rollout.action})
        torch.testing.assert_close(rollout.log_prob, log_prob.detach())
        torch.testing.assert_close(rollout.value[:-1], value.detach())


def test_time_limits_bootstrap_from_the_final_observation():
    settings = config(id="Pendulum-v1", max_episode_steps=15)
    with device_sampler(settings) as sampler:
        rollout = sampler.collect()
        assert sampler.env_spec.max_episode_steps == 15
    assert torch.equal(rollout.truncated.any(1), torch.arange(1, LENGTH + 1) % 15 == 0)
    assert ((rollout.final_value != 0) == rollout.truncated).all()


def test_episodes_are_those_of_the_rewards_across_rollouts():
    returns, lengths = np.zeros(N), np.zeros(N, int)
    with device_sampler(config()) as sampler:
        for _ in range(3):
            rollout, expected = sampler.collect(), []
            for t in range(LENGTH):
                returns += rollout.reward[t].numpy()
                lengths += 1
                for slot in (rollout.terminated | rollout.truncated)[t].nonzero().flatten():
                    expected.append((returns[slot], lengths[slot], t, slot))
                    returns[slot], lengths[slot] = 0, 0
            found = rollout.episodes
            rows = zip(found.returns, found.lengths, found.end_step, found.slot, strict=True)
            assert [*rows] == expected
        assert expected
        assert sampler.stats().frames == 3 * LENGTH * N
        assert sampler.stats().episodes.sum() >= len(expected)


def test_newest_parameters_act_in_the_whole_next_rollout():
    with device_sampler(config()) as sampler:
        before = sampler.collect()
        weights = {name: weight * 3 for name, weight in initial_weights(sampler._plan).items()}
        assert sampler.publish(weights) == 2
        after = sampler.collect()
    assert (before.policy_version == 1).all()
    assert (after.policy_version == 2).all()
    assert (before.value[-1] != after.value[0]).any()


def test_seed_decides_everything_and_a_resumed_run_sees_other_episodes():
    def collected(seed=3, **changes):
        with device_sampler(config(seed=seed), **changes) as sampler:
            return numbers(sampler.collect())

    first, again, other, resumed = (
        collected(), collected(), collected(seed=4), collected(first_rollout=1)
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], resumed[0][0])


def test_randomised_parameters_are_part_of_the_observation():
    with device_sampler(config(**RANDOMIZED)) as sampler:
        rollout = sampler.collect()
    assert set(rollout.observation) == {"observation", "params"}
    mass = rollout.observation["params"][..., 0]
    assert ((mass >= 0.5) & (mass <= 2)).all()
    changed = mass[1:] != mass[:-1]
    assert torch.equal(changed, rollout.truncated)


@pytest.mark.parametrize("normalize", [False, True])
def test_learner_learns_from_either_source(normalize):
    settings = config({"normalize_rewards": normalize}, **RANDOMIZED)
    with device_sampler(settings) as program, make_sampler(settings) as loops:
        for sampler in (program, loops):
            learner = build_learner(settings, sampler.env_spec)
            sampler.publish(learner.weights())
            metrics = learner.update(sampler.collect())
            assert metrics["gradient_steps"] == 2 * -(-N * LENGTH // 64)
            sampler.publish(learner.weights())
            sampler.collect()


def test_policy_acts_and_learns_in_bfloat16(monkeypatch):
    settings = config({"bf16": True})
    with device_sampler(settings) as sampler:
        exact = sampler.collect()
    # The products of any CPU are right, if slow.
    monkeypatch.setattr(engines, "why_not_bfloat16", lambda model, device: "")
    with device_sampler(settings, engine=engines.bfloat16) as sampler:
        rollout = sampler.collect()
        learner = build_learner(settings, sampler.env_spec)
        assert learner.update(rollout)["gradient_steps"] > 0
        sampler.publish(learner.weights())
        sampler.collect()
    assert rollout.value.dtype == torch.float32
    assert not torch.equal(rollout.value[0], exact.value[0])
    torch.testing.assert_close(rollout.value[0], exact.value[0], rtol=0.05, atol=0.01)


def test_plan_of_a_configuration_is_one_worker_of_compiled_loops_on_the_cpu():
    settings = config()
    plan = make_plan(settings)
    assert plan.topology == Topology(N, 1)
    assert plan.env_spec.observation_space == make_tensor("CartPole-v1")[0].spec.observation_space
    env = plan.build_env(2)
    assert isinstance(env, ClassicControlBatch), "not the compiled loops"
    env.close()


def test_random_actions_need_no_policy():
    settings = config()
    plan = make_plan(settings, random_actions=True)
    env, params = configured(settings.env, torch.device("cpu"))
    with DeviceSampler(plan, env, params) as sampler:
        rollout = sampler.collect()
        with pytest.raises(FastrlError, match="has no policy"):
            sampler.publish({})
    assert set(rollout.action.unique().tolist()) == {0, 1}


def test_misuse_says_what_would_be_right():
    sampler = device_sampler(config())
    weights = initial_weights(sampler._plan)
    with pytest.raises(FastrlError, match="differ from the model's: \\['extra'\\]"):
        sampler.publish({**weights, "extra": torch.zeros(1)})
    name = next(iter(weights))
    with pytest.raises(FastrlError, match=f"parameter '{name}' has shape"):
        sampler.publish({**weights, name: torch.zeros(1)})
    sampler.close()
    sampler.close()
    for use in (sampler.collect, lambda: sampler.publish(weights)):
        with pytest.raises(FastrlError, match="this sampler is closed"):
            use()
    gc.collect()  # or what other tests have dropped is closed meanwhile
    before = psutil.Process().num_fds()
    plan = make_plan(config())
    env, params = configured(config().env, plan.device(0))
    with pytest.raises(FastrlError, match="differ from the model's"):
        DeviceSampler(plan, env, params, {})
    assert psutil.Process().num_fds() == before
    with pytest.raises(ConfigError, match="num_env_workers must be 1 on a device, got 2"):
        device_sampler(config(), topology=Topology(N, 2))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda': torch finds 0"):
            make_sampler(on_gpu(config()))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"id": "CartPole-v2"}, "not a tensor environment; did you mean 'CartPole-v1'"),
        ({"id": "LunarLander-v3"}, "is for Acrobot-v1, CartPole-v1"),
        ({"id": "CartPole-v1", "kwargs": {"lenght": 1}}, "did you mean 'length'"),
        ({"id": "CartPole-v1", "kwargs": {"length": "1"}}, "length: expected a finite number"),
        ({"id": "CartPole-v1", "kwargs": {"expose_params": True}}, "no parameters to expose"),
        ({"id": "CartPole-v1", "wrappers": ["a:b"]}, "env.wrappers: 'CartPole-v1'"),
        ({"id": "CartPole-v1", "randomize": {"lenght": 1}}, "did you mean 'length'"),
    ],
)
def test_environment_that_does_not_fit_is_refused_in_one_line(env, message):
    with pytest.raises(EnvError, match=message):
        configured(EnvConfig(**env), torch.device("cpu"))


def test_number_that_is_not_finite_is_named():
    settings = config(id="Pendulum-v1")
    plan = make_plan(settings)
    env, params = configured(settings.env, plan.device(0))
    transition = env.transition

    def exploding(state, action, params):
        reached, reward, terminated = transition(state, action, params)
        here = (state.time == 5) & (torch.arange(N) == 2)
        return reached, torch.where(here, torch.inf, reward), terminated

    env.transition = exploding
    weights = initial_weights(plan)
    with DeviceSampler(plan, env, params, weights, check_numbers=False) as sampler:
        assert sampler.collect().reward[5, 2] == torch.inf
    with (
        DeviceSampler(plan, env, params, weights) as sampler,
        pytest.raises(
            EnvError, match=r"^reward is inf at step 5 of rollout 0, in env 2 of '.*'; see "
        ),
    ):
        sampler.collect()
    broken = {name: weight * torch.nan for name, weight in weights.items()}
    with device_sampler(settings) as sampler:
        sampler.publish(broken)
        with pytest.raises(EnvError, match="is nan at step"):
            sampler.collect()


@pytest.mark.gpu
@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_leaves_the_gpu_while_learning_from_it(normalize):
    settings = on_gpu(config({"normalize_rewards": normalize}))
    with make_sampler(settings) as sampler:
        assert isinstance(sampler, DeviceSampler)
        learner = build_learner(settings, sampler.env_spec)
        for _ in range(3):
            sampler.publish(learner.weights())
            rollout = sampler.collect()
            assert {tensor.device.type for tensor in numbers(rollout)} == {"cuda"}
            assert learner.update(rollout)["gradient_steps"] > 0


@pytest.mark.gpu
def test_vtrace_corrects_what_was_sampled_on_the_gpu():
    algorithm = A2CConfig(vtrace=True)
    settings = on_gpu(config().model_copy(update={"algorithm": algorithm}))
    with make_sampler(settings) as sampler:
        learner = build_learner(settings, sampler.env_spec)
        sampler.publish(learner.weights())
        assert learner.update(sampler.collect())["gradient_steps"] == 1


@pytest.mark.parametrize("sequence_length", [None, 10, 1])
@pytest.mark.parametrize("limit", [7, 500])
def test_states_are_carried_and_reset_on_the_device(sequence_length, limit):
    settings = config(id="CartPole-v1", max_episode_steps=limit)
    changes = {"outputs": None, "sequence_length": sequence_length}
    steps = torch.full((N,), Steps.BEGIN)
    spec = make_plan(settings).env_spec
    with device_sampler(settings, build_model=lambda: Steps(spec), **changes) as sampler:
        for _ in range(3):
            rollout, given = sampler.collect(), []
            ended = rollout.terminated | rollout.truncated
            for t in range(LENGTH):
                given.append(steps)
                left = torch.where(rollout.truncated[t], steps + 1, 0)
                assert torch.equal(rollout.final_value[t], left)
                steps = torch.where(ended[t], Steps.BEGIN, steps + 1)
            given = torch.stack([*given, steps])
            assert torch.equal(rollout.given, given[:-1])
            assert torch.equal(rollout.value, given)
            expected = given[:: sequence_length or LENGTH]
            assert torch.equal(rollout.policy_state[..., 0], expected)
            assert torch.equal(rollout.policy_state[..., 1], (expected + Steps.BEGIN) / 2)
        assert ended.any()
        assert rollout.truncated.any() == (limit == 7)
