from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from fastrl.config import ModelConfig
from fastrl.envs.tensor import (
    ModulePolicy,
    Noise,
    Randomized,
    RandomPolicy,
    Rollouts,
    make_tensor,
    rollout,
)
from fastrl.errors import ConfigError, SpaceError
from fastrl.models.policy import ActorCritic
from fastrl.spec import EnvSpec
from tests.sampling.remembering import Steps

N = 12


class FirstNumberPolicy(RandomPolicy):
    """Values an observation at its first number."""

    def value(self, weights, observation):
        return observation[""][..., 0]

    def act(self, weights, observation, noise):
        step = super().act(weights, observation, noise)
        value = self.value(weights, observation)
        return step._replace(outputs={**step.outputs, "value": value})


def maker(name="CartPole-v1", limit=None, policy=FirstNumberPolicy, **kwargs):
    env, params = make_tensor(name)
    if limit is not None:
        params = params._replace(max_episode_steps=torch.tensor(limit, dtype=torch.int32))
    return Rollouts(env, policy(env.spec), params, **kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree or ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_shapes():
    env, _ = make_tensor("Pendulum-v1")
    found = rollout(env, RandomPolicy(env.spec), None, 7, N, generator())
    assert found.observation[""].shape == (8, N, 3)
    assert found.action[""].shape == (7, N, 1)
    assert found.outputs["value"].shape == (8, N)
    assert found.outputs["log_prob"].shape == (7, N)
    for field in ("reward", "terminated", "truncated", "final_value"):
        assert getattr(found, field).shape == (7, N)
    assert found.params is None


def test_a_rollout_goes_on_where_the_last_ended():
    rollouts = maker()
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(60, N, generator(1))
    whole, end = rollouts.run(None, start, noise)
    first, middle = rollouts.run(None, start, Noise(noise.policy[:25], noise.env[:25]))
    second, end_of_second = rollouts.run(None, middle, Noise(noise.policy[25:], noise.env[25:]))
    assert whole.terminated.sum() > N
    parts = torch.cat([first.outputs["log_prob"], second.outputs["log_prob"]])
    assert torch.equal(parts, whole.outputs["log_prob"])
    for field in ("reward", "terminated", "episode_return", "episode_length"):
        parts = torch.cat([getattr(first, field), getattr(second, field)])
        assert torch.equal(parts, getattr(whole, field))
    assert torch.equal(second.observation[""], whole.observation[""][25:])
    assert_same(end_of_second, end, rtol=0, atol=0)


def test_transitions_are_those_of_the_environment():
    rollouts = maker(limit=6)
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(20, N, generator(1))
    found, _ = rollouts.run(None, start, noise)
    env, params = make_tensor("CartPole-v1")
    ended = found.terminated | found.truncated
    for t in range(20):
        before = found.observation[""][t]
        state = env.state_type(*before.unbind(-1), torch.zeros(N, dtype=torch.int32))
        reached, reward, terminated = env.transition(state, found.action[""][t], params)
        after = env.observe(reached)
        assert torch.equal(found.reward[t], reward)
        assert torch.equal(found.terminated[t], terminated)
        assert torch.equal(found.observation[""][t + 1][~ended[t]], after[~ended[t]])
        assert torch.equal(found.final_value[t], torch.where(found.truncated[t], after[:, 0], 0.0))
    assert found.truncated.sum() > N
    assert torch.equal(found.outputs["value"], found.observation[""][..., 0])


def test_episodes_are_summed_across_rollouts():
    rollouts = maker("MountainCarContinuous-v0", limit=7)
    here, rewards, ends, returns, lengths = rollouts.start(N, generator()), [], [], [], []
    for seed in range(5):
        found, here = rollouts.run(None, here, rollouts.draw_noise(5, N, generator(seed)))
        rewards.append(found.reward)
        ends.append(found.terminated | found.truncated)
        returns.append(found.episode_return)
        lengths.append(found.episode_length)
    reward, end, total, length = (
        torch.cat(part).numpy() for part in (rewards, ends, returns, lengths)
    )
    for env in range(N):
        edges = np.flatnonzero(end[:, env]) + 1
        assert edges.tolist() == [7, 14, 21]
        sums = [part.sum() for part in np.split(reward[:, env], edges)[:-1]]
        np.testing.assert_allclose(total[edges - 1, env], sums, rtol=1e-5)
        assert length[edges - 1, env].tolist() == [7, 7, 7]
    assert not total[~end].any()
    assert not length[~end].any()


def test_steps_in_one_graph_change_nothing(monkeypatch):
    compile_ = torch.compile
    seen = []

    def without_compiler(function, *, fullgraph, mode):
        assert fullgraph
        seen.append(mode)
        return compile_(function, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_compiler)
    rollouts, graphs = maker(limit=3), maker(limit=3, steps_per_graph=4)
    # Six steps, of which three make the largest equal parts.
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(6, N, generator(1))
    assert_same(graphs.run(None, start, noise), rollouts.run(None, start, noise))
    assert seen == ["default"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_compiled_rollouts_equal_eager_ones(name):
    rollouts, graphs = maker(name), maker(name, steps_per_graph=2)
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(10, N, generator(1))
    ours, theirs = (each.run(None, start, noise) for each in (graphs, rollouts))
    assert_same(ours, theirs, rtol=1e-4, atol=1e-4)


def test_policy_computes_with_the_weights_it_is_given():
    env, params = make_tensor("CartPole-v1")
    model = ActorCritic(env.spec, ModelConfig(hidden_sizes=[8]))
    weights = {name: weight * 1.5 for name, weight in model.state_dict().items()}
    rollouts = Rollouts(env, ModulePolicy(model), params)
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(9, N, generator(1))
    found, _ = rollouts.run(weights, start, noise)
    own, _ = rollouts.run(None, start, noise)
    assert (found.outputs["value"] != own.outputs["value"]).any()

    model.load_state_dict(weights)
    observation = {"": found.observation[""][:-1]}
    action, outputs = model.act(observation, noise.policy)[:2]
    assert torch.equal(found.action[""], action[""])
    torch.testing.assert_close(found.outputs["log_prob"], outputs["log_prob"])
    torch.testing.assert_close(found.outputs["value"][:-1], outputs["value"])
    torch.testing.assert_close(found.outputs["value"], model.value(found.observation))


@pytest.mark.parametrize("squash", [False, True])
def test_samples_are_kept_inside_the_bounds(squash):
    rollouts = maker("MountainCarContinuous-v0", squash=squash)
    start = rollouts.start(1, generator())
    noise = rollouts.draw_noise(1, 1, generator())
    # Far outside of [0, 1), so that the policy's sample is 3.
    found, _ = rollouts.run(None, start, noise._replace(policy=torch.full((1, 1, 1), 2.0)))
    assert found.action[""].item() == 3
    applied = np.tanh(3) if squash else 1.0
    assert found.reward.item() == pytest.approx(-0.1 * applied**2, rel=1e-5)


@pytest.mark.parametrize("expose", [False, True])
def test_randomised_parameters_are_recorded(expose):
    inner, _ = make_tensor("CartPole-v1")
    env = Randomized(inner, {"length": {"uniform": [0.4, 0.6]}}, expose=expose)
    found = rollout(env, RandomPolicy(env.spec), None, 40, N, generator())
    assert found.params.shape == (41, N, 1)
    changed = (found.params[1:] != found.params[:-1])[..., 0]
    assert torch.equal(changed, found.terminated | found.truncated)
    assert set(found.observation) == ({"observation", "params"} if expose else {""})
    if expose:
        assert torch.equal(found.observation["params"], found.params)
        assert "params" in env.spec.observation


def test_generator_decides_everything():
    env, _ = make_tensor("Acrobot-v1")
    policy = RandomPolicy(env.spec)
    first, second = (rollout(env, policy, None, 5, N, generator(3)) for _ in range(2))
    assert_same(first, second, rtol=0, atol=0)


def test_random_policy_draws_every_action_equally_often():
    for name, actions in (("Acrobot-v1", 3), ("Pendulum-v1", None)):
        policy = RandomPolicy(make_tensor(name)[0].spec)
        noise = policy.draw_noise((9000,), generator())
        action, outputs = policy.act(None, {}, noise)[:2]
        log_prob, value = outputs["log_prob"], outputs["value"]
        if actions:
            counts = torch.bincount(action[""], minlength=actions)
            assert counts.tolist() == pytest.approx([3000] * 3, abs=200)
            assert log_prob.exp().tolist() == pytest.approx([1 / 3] * 9000)
        else:
            assert -2 <= action[""].min() < -1.99 < 1.99 < action[""].max() < 2
            assert log_prob.exp().tolist() == pytest.approx([1 / 4] * 9000)
        assert not value.any()


def test_random_policy_refuses_what_it_cannot_draw_from():
    from gymnasium import spaces

    unbounded = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(SpaceError, match="must be Discrete or a bounded Box"):
        RandomPolicy(EnvSpec("Any-v0", unbounded, unbounded))


@pytest.mark.parametrize("sizes", [{"num_steps": 0}, {"num_envs": 0}, {"num_envs": -4}])
def test_rollout_of_nothing_is_refused(sizes):
    env, _ = make_tensor("CartPole-v1")
    told = r"^num_(steps|envs) must be a whole number of at least 1, got "
    with pytest.raises(ConfigError, match=told):
        rollout(env, RandomPolicy(env.spec), None, **{"num_steps": 3, "num_envs": 2, **sizes})


def test_states_of_policies_are_the_same_in_graphs(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compile_(function, backend="aot_eager")
    )
    made = {"limit": 3, "policy": lambda spec: ModulePolicy(Steps(spec)), "sequence_length": 2}
    rollouts, graphs = maker(**made), maker(**made, steps_per_graph=4)
    start, noise = rollouts.start(N, generator()), rollouts.draw_noise(6, N, generator(1))
    (ours, here), (theirs, there) = (each.run(None, start, noise) for each in (graphs, rollouts))
    assert_same((ours, here), (theirs, there))
    assert (ours.policy_state[:, 0, 0] - Steps.BEGIN).tolist() == [0, 2, 1, 0]
    assert torch.equal(here.policy_state, ours.policy_state[-1])
