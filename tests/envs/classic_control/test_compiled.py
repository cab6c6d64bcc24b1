from __future__ import annotations

import pytest
import torch

from fastrl.envs.tensor import RandomPolicy, Rollouts, make_tensor
from fastrl.errors import EnvError
from tests.envs.classic_control.gymnasium_twin import NAMES

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.mark.parametrize("name", NAMES)
def test_compiled_rollout_equals_the_tensor_programs(name):
    # Short enough that rounding has not grown.
    steps, n = 25, 64
    rollouts = []
    for compiled in (False, True):
        env, params = make_tensor(name, compiled=compiled)
        params = params._replace(max_episode_steps=torch.tensor(10, dtype=torch.int32))
        maker = Rollouts(env, RandomPolicy(env.spec), params)
        generator = torch.Generator().manual_seed(2)
        start = maker.start(n, generator)
        rollouts.append(maker.run(None, start, maker.draw_noise(steps, n, generator))[0])
    ours, theirs = rollouts
    assert theirs.truncated.sum() >= n
    for field in ("reward", "terminated", "truncated", "episode_return", "episode_length"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), **TOLERANCE)
    torch.testing.assert_close(ours.observation[""], theirs.observation[""], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_step_is_pure_and_keeps_final_observations(name):
    env, params = make_tensor(name, compiled=True)
    each = type(params)(*(p.repeat(8) for p in params[:-1]), torch.tensor(1))
    generator = torch.Generator().manual_seed(0)
    _, state = env.reset(env.draw_noise((8,), generator), params)
    action = RandomPolicy(env.spec).act(None, {}, torch.rand(8, *env.spec.action_space.shape))
    arguments = state, action[0][""], env.draw_noise((8,), generator)
    kept = [tensor.clone() for tensor in (*state, *arguments[1:])]
    observation, after, _, terminated, truncated, info = env.step(*arguments, each)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*state, *arguments[1:]), strict=True))
    assert (terminated | truncated).all()
    assert after.time.tolist() == [0] * 8
    torch.testing.assert_close(observation, env.observe(after), **TOLERANCE)
    reached, _, _ = env.transition(state, arguments[1], params)
    torch.testing.assert_close(info["final_observation"], env.observe(reached), **TOLERANCE)


def test_what_cannot_be_compiled_says_so():
    with pytest.raises(EnvError, match="either differentiable or compiled"):
        make_tensor("Pendulum-v1", differentiable=True, compiled=True)
    with pytest.raises(EnvError, match="for float32 on the CPU"):
        make_tensor("Pendulum-v1", compiled=True, dtype=torch.float64)
    env, params = make_tensor("Pendulum-v1", compiled=True)
    _, state = env.reset(env.draw_noise(()), params)
    with pytest.raises(EnvError, match=r"got a state of shape \[\]"):
        env.step(state, torch.zeros(1), env.draw_noise(()), params)
