from __future__ import annotations

import pytest
import torch

from fastrl.envs.tensor import make_tensor
from fastrl.envs.tensor.randomize import Randomized, quantiles
from fastrl.errors import EnvError

RANGES = {"length": {"uniform": [0.4, 0.6]}, "gravity": {"choice": [5, 10]}}


def randomized(n, ranges=RANGES):
    inner, params = make_tensor("CartPole-v1")
    env = Randomized(inner, ranges)
    generator = torch.Generator().manual_seed(0)
    observation, state = env.reset(env.draw_noise((n,), generator), params)
    return env, params, observation, state, generator


def quantile(**distribution):
    return quantiles({"length": distribution}, ["length"])[0]["length"]


NOISE = torch.linspace(0, 1 - 2**-24, 10_001)


def test_uniform_covers_its_range_evenly():
    values = quantile(uniform=[0.4, 0.6])(NOISE)
    assert values[[0, 5000, -1]].tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_log_uniform_gives_every_factor_the_same_share():
    values = quantile(log_uniform=[0.01, 1])(NOISE)
    assert values[[0, 5000, -1]].tolist() == pytest.approx([0.01, 0.1, 1], rel=1e-4)


def test_normal_has_its_mean_and_deviation_and_is_finite():
    values = quantile(normal=[9.8, 0.1])(NOISE)
    assert values.isfinite().all()
    assert values.mean().item() == pytest.approx(9.8, abs=1e-3)
    assert values[8413].item() == pytest.approx(9.9, abs=1e-3)


def test_choice_picks_every_value_equally_often():
    values = quantile(choice=[1, 2, 4])(NOISE)
    shares = [(values == value).float().mean().item() for value in (1, 2, 4)]
    assert shares == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_parameters_hold_for_an_episode_and_are_drawn_anew_for_the_next():
    env, params, _, state, generator = randomized(8)
    assert env.noise_size == 6
    assert env.names == ("gravity", "length")
    seen = torch.stack(state.drawn, dim=-1)
    episodes = 0
    for _ in range(60):
        actions = torch.ones(8, dtype=torch.int64)
        _, state, _, terminated, _, info = env.step(
            state, actions, env.draw_noise((8,), generator), params
        )
        assert torch.equal(info["params"][~terminated], seen[~terminated])
        assert (info["params"][terminated, 1] != seen[terminated, 1]).all()
        seen = info["params"]
        episodes += int(terminated.sum())
    assert episodes > 8
    assert set(seen[:, 0].tolist()) <= {5.0, 10.0}


def test_dynamics_use_the_drawn_parameters():
    env, params, _, state, generator = randomized(8)
    inner, _ = make_tensor("CartPole-v1")
    actions = torch.ones(8, dtype=torch.int64)
    *_, info = env.step(state, actions, env.draw_noise((8,), generator), params)
    drawn = dict(zip(env.names, state.drawn, strict=True))
    reached, _, _ = inner.transition(state.inner, actions, params._replace(**drawn))
    assert torch.equal(info["final_observation"], inner.observe(reached))


def test_randomised_environment_works_under_vmap_and_as_one_graph():
    env, params, _, state, generator = randomized(4)
    arguments = state, torch.ones(4, dtype=torch.int64), env.draw_noise((4,), generator), params
    expected = env.step(*arguments)
    mapped = torch.func.vmap(env.step, in_dims=(0, 0, 0, None))(*arguments)
    torch._dynamo.reset()  # it compiles a method for eight kinds of environments at most
    graph = torch.compile(env.step, fullgraph=True, backend="aot_eager")(*arguments)
    for found in (mapped, graph):
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[5]["params"], expected[5]["params"])


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"lenght": {"uniform": [0, 1]}}, "unknown parameter 'lenght'; did you mean 'length'"),
        ({"length": {"unform": [0, 1]}}, "unknown distribution 'unform'; did you mean 'uniform'"),
        ({"length": 3}, "expected one distribution"),
        ({"length": {"uniform": [0, 1], "choice": [1]}}, "expected one distribution"),
        ({"length": {"uniform": [2, 1]}}, r"uniform: expected \[lowest, highest\]"),
        ({"length": {"uniform": [1]}}, r"uniform: expected \[lowest, highest\], got \[1\]"),
        ({"length": {"log_uniform": [0, 1]}}, "above 0"),
        ({"length": {"normal": [0, -1]}}, "standard deviation"),
        ({"length": {"choice": []}}, "values to choose from"),
        ({"length": {"uniform": "wide"}}, r"expected \[lowest, highest\], got 'wide'"),
        ({"length": {"uniform": [0, [1]]}}, r"length: expected numbers, got"),
        ({"length": {"uniform": [0, float("nan")]}}, "expected finite numbers, got nan"),
        ({"max_episode_steps": {"choice": [10]}}, "unknown parameter 'max_episode_steps'"),
    ],
)
def test_wrong_specification_says_what_would_be_right(specification, message):
    inner, _ = make_tensor("CartPole-v1")
    with pytest.raises(EnvError, match=message):
        Randomized(inner, specification)
