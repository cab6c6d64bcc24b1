from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastrl.envs.tensor import RandomPolicy, Rollouts, make_tensor
from fastrl.errors import ConfigError, EnvError
from tests.envs.classic_control.gymnasium_twin import FIRST

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.mark.parametrize("name", FIRST)
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


@pytest.mark.parametrize("name", FIRST)
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


def test_parameters_with_an_axis_of_one_are_shared():
    env, params = make_tensor("CartPole-v1", compiled=True)
    _, state = env.reset(env.draw_noise((5,)), params)
    arguments = state, torch.ones(5, dtype=torch.int64), env.draw_noise((5,))
    shared = env.step(*arguments, type(params)(*(each.reshape(1) for each in params)))
    torch.testing.assert_close(shared[:4], env.step(*arguments, params)[:4], rtol=0, atol=0)


def test_what_cannot_be_compiled_says_so():
    with pytest.raises(EnvError, match="either differentiable or compiled"):
        make_tensor("Pendulum-v1", differentiable=True, compiled=True)
    with pytest.raises(EnvError, match="for float32 on the CPU"):
        make_tensor("Pendulum-v1", compiled=True, dtype=torch.float64)
    env, params = make_tensor("Pendulum-v1", compiled=True)
    _, state = env.reset(env.draw_noise(()), params)
    with pytest.raises(EnvError, match=r"state\.theta: .* got \(\) torch\.float32"):
        env.step(state, torch.zeros(1), env.draw_noise(()), params)


def arguments_of(name, n=4):
    env, params = make_tensor(name, compiled=True)
    noise = env.draw_noise((n,), torch.Generator().manual_seed(0))
    _, state = env.reset(noise, params)
    own = env.spec.action_space.shape
    action = torch.zeros(n, *own, dtype=torch.float32 if own else torch.int64)
    return env, {"state": state, "action": action, "noise": noise, "params": params}


def spoilt(tensor, how):
    match how:
        case "longer":
            return torch.cat([tensor, tensor])
        case "shorter":
            return tensor[:2]
        case "one row":
            return tensor[:1]
        case "more axes":
            return tensor[None]
        case "float64":
            return tensor.double()
        case "elsewhere":
            return tensor.to("meta")
        case "gradients":
            return tensor.float().requires_grad_()
        case _:
            return None


SPOILT = ("longer", "shorter", "one row", "more axes", "float64", "elsewhere", "gradients", "none")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@given(st.data(), st.sampled_from(SPOILT))
def test_what_compiled_code_would_misread_is_refused(name, data, how):
    env, given_ = arguments_of(name)
    which = data.draw(st.sampled_from(list(given_)))
    value = given_[which]
    # An action's gradient is dropped, as policies give some that have one.
    assume((which, how) != ("action", "gradients") or name == "CartPole-v1")
    if which in ("state", "params"):
        field = data.draw(st.sampled_from(value._fields))
        tensor = getattr(value, field)
        assume(field != "max_episode_steps" or how not in ("float64", "gradients"))
        if which == "params":
            tensor = tensor.repeat(4)
            assume(how != "one row")
        given_[which] = value._replace(**{field: spoilt(tensor, how)})
    else:
        given_[which] = spoilt(value, how)
    with pytest.raises(EnvError, match=which):
        env.step(**given_)


def test_states_and_parameters_of_another_environment_are_refused():
    env, given_ = arguments_of("CartPole-v1")
    _, others = arguments_of("Pendulum-v1")
    for which in ("state", "params"):
        with pytest.raises(ConfigError, match=f"{which} must be a CartPole"):
            env.step(**given_ | {which: others[which]})


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_rows_that_are_shared_or_strided_step_as_their_copies(name):
    env, whole = arguments_of(name)
    noise, action = whole["noise"][:1].expand(4, -1), whole["action"]
    wanted = env.step(**whole | {"noise": noise.clone()})
    shared = env.step(**whole | {"noise": noise[0], "action": action[0]})
    strided = whole | {
        "state": type(whole["state"])(*(q.repeat_interleave(2)[::2] for q in whole["state"])),
        "action": action.repeat_interleave(2, 0)[::2],
        "noise": noise.repeat_interleave(2, 1)[:, ::2],
    }
    for found in (shared, env.step(**strided)):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[2], wanted[2])


@pytest.mark.parametrize("action", [5, -1, 1000, 2, 2**62, -(2**63)])
def test_actions_that_are_none_are_refused(action):
    env, given_ = arguments_of("CartPole-v1")
    given_["action"][2] = action
    with pytest.raises(EnvError, match=f"env 2 of 'CartPole-v1': action {action} is not one of 0"):
        env.step(**given_)


def test_time_limit_beyond_what_time_is_counted_in_is_refused():
    env, given_ = arguments_of("CartPole-v1")
    given_["params"] = given_["params"]._replace(max_episode_steps=torch.tensor(2**31))
    with pytest.raises(EnvError, match=r"max_episode_steps: .* at most 2,147,483,647"):
        env.step(**given_)
