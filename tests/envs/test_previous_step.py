"""Observations with the previous action and reward say what the step before them did."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import fastrl
from fastrl.config import load_config
from fastrl.envs import EnvFactory, PreviousActionReward, make_tensor
from fastrl.envs.previous_step import ActionVector
from fastrl.envs.state import load_state, state_of
from fastrl.envs.tensor import RandomPolicy, Rollouts
from fastrl.envs.tensor.previous import TensorEnvWithPrevious
from fastrl.errors import EnvError
from fastrl.training.evaluation import EpisodePlayer, EvaluationProtocol
from fastrl.training.run import load_policy, train
from tests.counting_env import CountingEnv, action_mark, decode
from tests.envs.stepping import random_actions, run, views

KINDS = ("discrete", "box", "multi", "binary", "dict")


def counting(num_envs, observation="vector", **kwargs):
    factory = EnvFactory(
        "tests.counting_env:make",
        {"observation": observation, "ending": "alternate", "uneven": True, **kwargs},
        previous_action_reward=True,
    )
    return factory.batched(num_envs)


def marked(kind, vector):
    """Return the mark of the action that a vector stands for."""
    if kind == "discrete":
        return int(vector.argmax())
    if kind == "multi":
        return action_mark(np.array([1 + vector[:3].argmax(), 10 + vector[3:].argmax()]))
    if kind == "dict":
        return action_mark({"key": 2 + vector[:4].argmax(), "move": vector[4:]})
    return action_mark(vector if kind == "box" else vector.astype(np.int8))


@pytest.mark.parametrize("action", KINDS)
@pytest.mark.parametrize("observation", ["vector", "dict", "tuple"])
def test_rows_hold_the_action_and_reward_of_the_step_before(action, observation):
    env = counting(3, observation, action=action)
    found = run(env, range(3), random_actions(env.spec, 3, 30))
    assert found.episodes >= 10

    def check(leaves, reward):
        *own, vector, paid = leaves
        place = decode(observation, tuple(own))
        if reward is None:
            assert place.last_action == -1
            assert not vector.any()
            assert not paid.any()
        else:
            assert abs(place.last_action - marked(action, vector)) <= 2 * (action == "box")
            assert paid == [reward]

    for t, leaves in enumerate(found.observations):
        for env_index in range(3):
            begins = t == 0 or env_index in found.finals[t - 1]
            reward = None if begins else found.rewards[t - 1][env_index]
            check([leaf[env_index] for leaf in leaves], reward)
    for t, finals in enumerate(found.finals):
        for env_index, leaves in finals.items():
            check(leaves, found.rewards[t][env_index])


def test_a_box_is_as_the_environment_accepts_it():
    factory = EnvFactory("Pendulum-v1", action_bounds="squash", previous_action_reward=True)
    env = factory.batched(2)
    action = np.float32([[0.1], [50.0]])
    seen = views(env.spec, 2, (action,))
    env.reset([0, 1], seen.observation)
    env.step(seen)
    np.testing.assert_allclose(seen.observation[1], 2 * np.tanh(action), rtol=1e-6)


@pytest.mark.parametrize("kind", ["serial", "process"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "fastrl/CartPole-v1"])
def test_every_sampler_stores_them(kind, env_id):
    config = load_config(
        None,
        [
            *(f"env.id={env_id}", f"sampler.kind={kind}", "model.previous_action_reward=true"),
            *("sampler.envs_per_worker=4", "sampler.num_env_workers=2", "sampler.debug=true"),
            *("sampler.rollout_length=64", "env.max_episode_steps=20"),
        ],
    )
    with fastrl.make_sampler(config) as sampler:
        rollout = sampler.collect()
        kept = ~(rollout.terminated | rollout.truncated)
        assert kept.any()
        assert not kept.all()
        chosen = torch.nn.functional.one_hot(rollout.action, 2) * kept[..., None]
        assert torch.equal(rollout.observation["previous_action"][1:], chosen.float())
        paid = rollout.reward * kept
        assert torch.equal(rollout.observation["previous_reward"][1:, :, 0], paid)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_tensor_program_equals_the_loops(name):
    env, params = make_tensor(name)
    params = params._replace(max_episode_steps=torch.tensor(9, dtype=torch.int32))
    with_previous = TensorEnvWithPrevious(env)
    discrete = isinstance(env.spec.action_space, spaces.Discrete)
    rollouts = []
    for each in (with_previous, env):
        maker = Rollouts(each, RandomPolicy(each.spec), params)
        generator = torch.Generator().manual_seed(0)
        start = maker.start(5, generator)
        rollouts.append(maker.run(None, start, maker.draw_noise(30, 5, generator))[0])
    ours, plain = rollouts
    batch = EnvFactory(f"fastrl/{name}", previous_action_reward=True).batched(1)
    assert with_previous.spec.observation_space == batch.spec.observation_space
    assert torch.equal(ours.observation["observation"], plain.observation[""])
    vector = ours.action[""]
    vector = torch.nn.functional.one_hot(vector, 2).float() if discrete else vector
    ended = ours.terminated | ours.truncated
    assert ended.any()
    kept = ~ended[..., None]
    for key, value in (("action", vector), ("reward", ours.reward[..., None])):
        seen = ours.observation[f"previous_{key}"]
        assert not seen[0].any()
        assert torch.equal(seen[1:], value * kept)
        assert torch.equal(ours.final_observation[f"previous_{key}"][ended], value[ended])


def test_a_restored_batch_goes_on_as_the_saved_one():
    factory = EnvFactory("CartPole-v1", previous_action_reward=True)
    one, other = factory.batched(2), factory.batched(2)
    actions = random_actions(one.spec, 2, 40)
    run(one, [1, 2], actions[:13])
    run(other, [5, 6], actions[:1])
    load_state(other, state_of(one))
    for action in actions[13:]:
        seen = [views(one.spec, 2, action) for _ in range(2)]
        for env, each in zip((one, other), seen, strict=True):
            env.step(each)
        for ours, theirs in zip(*(each.observation for each in seen), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_calls_reach_the_environments():
    env = counting(2, length=5)
    assert env.unwrapped.num_envs == 2
    env.make_call(fastrl.envs.calls.EnvCall("length", (1,), sets=True))
    seen = views(env.spec, 2, (np.zeros(2, np.int64),))
    env.reset([0, 0], seen.observation)
    env.step(seen)
    assert seen.terminated.all()


def test_a_single_environment_says_the_same_as_a_batch():
    factory = EnvFactory(CountingEnv, {"action": "dict"}, previous_action_reward=True)
    batch, single = factory.batched(1), factory.single()
    seen = views(batch.spec, 1, random_actions(batch.spec, 1, 1)[0])
    batch.reset([3], seen.observation)
    batch.step(seen)
    single.reset(seed=3)
    key, move = (rows[0] for rows in seen.action)
    found = single.step({"key": key + 2, "move": np.clip(move, *np.float32([[-1, 0], [1, 2]]))})[0]
    assert found in single.observation_space
    assert single.observation_space == batch.spec.observation_space
    for name, rows in zip(
        ("observation", "previous_action", "previous_reward"), seen.observation, strict=True
    ):
        np.testing.assert_array_equal(found[name], rows[0])


def test_a_trained_policy_plays_as_in_evaluation(tmp_path):
    config = load_config(
        None,
        [
            *("env.id=CartPole-v1", "total_steps=512", "sampler=serial", "sampler.num_envs=4"),
            *("sampler.rollout_length=64", "model.previous_action_reward=true"),
            *("evaluation.final_episodes=3", f"run_dir={tmp_path}/run"),
            *("logging.tensorboard=false", "evaluation.enabled=false"),
        ],
    )
    done = train(config)
    policy = load_policy(done.path, checkpoint="last")
    factory = EnvFactory("CartPole-v1", previous_action_reward=True)
    protocol = EvaluationProtocol(3, seed=5)
    player = EpisodePlayer(policy.env_spec, factory.batched, 3)
    expected = player.play(policy.model, protocol)
    player.close()
    env = PreviousActionReward(gymnasium.make("CartPole-v1"))
    for seed, wanted in zip(protocol.episode_seeds(), expected.returns, strict=True):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = policy.act(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert total == wanted


def test_an_observation_that_has_the_key_is_an_error():
    wrapped = EnvFactory(
        "CartPole-v1", wrappers=[PreviousActionReward], previous_action_reward=True
    )
    with pytest.raises(EnvError, match="have the key 'previous_action' already"):
        wrapped.probe()


def test_vector_environments_take_the_wrapper():
    with fastrl.make_vec("CartPole-v1", 2, wrappers=[PreviousActionReward]) as envs:
        envs.reset(seed=0)
        seen = envs.step(np.array([0, 1]))[0]
    np.testing.assert_array_equal(seen["previous_action"], np.eye(2))
    np.testing.assert_array_equal(seen["previous_reward"], np.ones((2, 1)))


def test_vectors_join_all_leaves():
    vector = ActionVector(
        spaces.Tuple(
            [spaces.Discrete(3, start=-1), spaces.Box(0, 9, (2, 2)), spaces.MultiBinary(2)]
        )
    )
    rows = np.empty((1, vector.size), np.float32)
    vector.write((np.array([1]), np.arange(4.0).reshape(1, 2, 2), np.array([[0, 1]])), rows)
    assert rows.tolist() == [[0, 0, 1, 0, 1, 2, 3, 0, 1]]
