from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrl.config import ModelConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import ConfigError
from fastrl.models import ActorCritic, build_model
from fastrl.training.evaluation import EpisodePlayer, EvaluationProtocol, evaluate

UNEVEN = EnvFactory("tests.training.clockwork:Uneven")
PENDULUM = EnvFactory("Pendulum-v1", max_episode_steps=20)


def model_for(factory, seed=0, **kwargs):
    torch.manual_seed(seed)
    return build_model(factory.probe(), ModelConfig(hidden_sizes=(8,), **kwargs))


def play(factory, model, **protocol):
    settings = EvaluationProtocol(**({"episodes": 5, "seed": 7} | protocol))
    return evaluate(model, factory.probe(), factory.batched, settings)


@pytest.mark.parametrize("deterministic", [True, False])
def test_same_policy_and_seed_give_the_same_result(deterministic):
    model = model_for(PENDULUM)
    results = [play(PENDULUM, model, deterministic=deterministic) for _ in range(2)]
    assert results[0] == results[1]
    assert len(set(results[0].returns)) == 5


class Dropping(ActorCritic):
    """Forgets most of what it sees, in training mode."""

    def forward(self, observation):
        dropped = {
            path: torch.dropout(leaf, 0.9, self.training) for path, leaf in observation.items()
        }
        return super().forward(dropped)


def test_a_policy_plays_in_evaluation_mode_and_stays_as_it_was():
    torch.manual_seed(0)
    model = Dropping(PENDULUM.probe(), ModelConfig(hidden_sizes=(8,)))
    assert play(PENDULUM, model) == play(PENDULUM, model)
    assert model.training


def test_another_seed_or_policy_gives_another_result():
    first = play(PENDULUM, model_for(PENDULUM))
    assert play(PENDULUM, model_for(PENDULUM), seed=8).returns != first.returns
    assert play(PENDULUM, model_for(PENDULUM, seed=1)).returns != first.returns


def test_environments_that_are_used_again_give_what_fresh_ones_give():
    model, settings = model_for(PENDULUM), EvaluationProtocol(5, 7)
    player = EpisodePlayer(PENDULUM.probe(), PENDULUM.batched, 5)
    results = [player.play(model, settings) for _ in range(2)]
    player.close()
    assert results == [play(PENDULUM, model)] * 2


def lengths_by_hand(protocol):
    env, lengths = UNEVEN.single(), []
    for seed in protocol.episode_seeds():
        env.reset(seed=seed)
        over, length = False, 0
        while not over:
            _, _, over, _, _ = env.step(0)
            length += 1
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("episodes", [1, 3, 16, 40])
def test_every_episode_counts_however_long_it_is(episodes):
    result = play(UNEVEN, model_for(UNEVEN), episodes=episodes)
    assert list(result.lengths) == lengths_by_hand(EvaluationProtocol(episodes, 7))


def test_return_is_the_sum_of_rewards_of_the_likeliest_actions():
    model = model_for(UNEVEN)
    with torch.no_grad():
        model.actor_head.weight.zero_()
        model.actor_head.bias.copy_(torch.tensor([0.0, 0.1]))
    likeliest = play(UNEVEN, model, episodes=30)
    assert likeliest.returns == tuple(map(float, likeliest.lengths))
    sampled = play(UNEVEN, model, episodes=30, deterministic=False)
    assert 0.3 < sum(sampled.returns) / sum(sampled.lengths) < 0.7


def test_more_episodes_begin_with_those_of_fewer():
    few, many = EvaluationProtocol(3, 5).episode_seeds(), EvaluationProtocol(50, 5).episode_seeds()
    assert many[:3] == few
    assert len(set(many)) == 50


def test_statistics_of_observations_stay_as_they_are():
    model = model_for(PENDULUM, normalize_observations=True)
    model.update_normalizers({"": torch.randn(100, 3)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    play(PENDULUM, model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = model_for(PENDULUM)
    torch.manual_seed(5)
    play(PENDULUM, model, deterministic=False)
    assert torch.equal(torch.rand(3), expected)


def test_mean_and_deviation():
    result = play(UNEVEN, model_for(UNEVEN), episodes=40)
    assert result.return_mean == pytest.approx(sum(result.returns) / 40)
    assert result.return_std == pytest.approx(np.std(result.returns))
    assert result.length_mean == pytest.approx(sum(result.lengths) / 40)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes must be a whole number of at least 1, got 0"),
        ({"episodes": "3"}, "episodes must be a whole number of at least 1, got '3'"),
        ({"episodes": 1.5}, "episodes must be a whole number of at least 1, got 1.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_played_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        EvaluationProtocol(**{"episodes": 1, "seed": 0, **wrong})
